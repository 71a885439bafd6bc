"""Cut a run's stream at random, go on with other ranks and workers, and compare every bit.

    python -m benchmarks.resume --cuts 5000

or in pieces, `--cuts 1000 --seed N --add` for several N.

An undisturbed run of one rank is read once: images, keys, and all augmented views. Then lives of
the same run: at each cut it is dropped, with whatever its workers had read ahead, and gone on with
by another number of ranks and of loader processes.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from itertools import islice
from pathlib import Path

import click
import numpy as np
import torch

from clsp.evaluate.about import commit
from clsp.shards.images import encode_image, load_pixels, open_images
from clsp.shards.reader import ShardSet
from clsp.shards.record import Record
from clsp.shards.store import index_folder
from clsp.shards.writer import write_shard
from clsp.train.config import TrainConfig
from clsp.train.tuples import TupleBatches, Tuples, decoded_set, load_tuples
from clsp.train.views import make_views

from .common import RESULTS, report

SIZES = (31, 7, 50, 12)  # records a shard: 100 in all
WORLDS, WORKERS = (1, 2, 3, 4, 6), (0,) * 27 + (1, 2, 3)
EPOCHS, BATCH = 4, 12  # 8 whole batches an epoch, 4 records dropped
CONFIG = TrainConfig(positive="synthetic", batch=BATCH, epochs=EPOCHS, solarize_p=0.2)
CPU = torch.device("cpu")


def write_set(folder: Path) -> ShardSet:
    """Return a set of digits whose positives are the digits that follow."""
    pixels = load_pixels(open_images("digits"))
    images = [encode_image(image, "png") for image in pixels[: sum(SIZES) + 3]]
    (folder / "data").mkdir(parents=True)
    first = 0
    for number, size in enumerate(SIZES):
        rows = range(first, first + size)
        records = [Record(f"d{n}", images[n], tuple(images[n + 1 : n + 4])) for n in rows]
        write_shard(folder / "data" / f"train-{number:05d}.tar", records, 3)
        first += size
    return index_folder(folder)


def content(item: Tuples) -> list[bytes]:
    """Return everything that training sees of each sample of a batch, as bytes."""
    parts = [item.anchor, item.positives, *make_views(item, CONFIG, CPU)]
    rows = [part.numpy().reshape(len(item.keys), -1).view(np.uint8) for part in parts]
    rows.append(item.keys.view(np.uint8).reshape(-1, 8))
    return [row.tobytes() for row in np.concatenate(rows, axis=1)]


def count_equal(folder: Path, cuts: int, seed: int) -> tuple[int, int, int]:
    """Return batches read after cuts, how many of them were bit-equal, and lives finished."""
    shards = write_set(folder / "set")
    caches = (None, decoded_set(shards, folder / "cache"))
    dice = random.Random(seed)

    def batches(rank: int, world: int) -> TupleBatches:
        pixels = dice.choice(caches)
        return TupleBatches(
            shards, BATCH, CONFIG.seed, positives=1, pixels=pixels, rank=rank, world=world
        )

    whole = batches(0, 1)
    total = EPOCHS * whole.per_epoch
    expected = [content(whole[step]) for step in range(total)]
    read = equal = lives = step = 0
    for _ in range(cuts):
        world, workers = dice.choice(WORLDS), dice.choice(WORKERS)
        length = min(dice.randint(1, 3), total - step)
        found: list[list[bytes]] = [[] for _ in range(length)]
        for rank in range(world):
            loader = load_tuples(batches(rank, world), step, total, workers=workers)
            for place, item in enumerate(islice(loader, length)):
                found[place] += content(item)
        read += length
        equal += sum(found[place] == expected[step + place] for place in range(length))
        step = (step + length) % total
        lives += step == 0
    return read, equal, lives


@click.command()
@click.option("--cuts", default=5000, show_default=True, type=click.IntRange(min=1))
@click.option("--seed", default=0, show_default=True)
@click.option("--add", is_flag=True, help="Add to the result of other seeds at this commit.")
@click.option("--results", default=RESULTS, type=click.Path(path_type=Path))
def main(cuts: int, seed: int, add: bool, results: Path) -> None:
    """Count the batches that are bit-equal to an undisturbed run's after random cuts."""
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        read, equal, lives = count_equal(Path(folder), cuts, seed)
    counts = {"cuts": cuts, "lives": lives, "batches": read, "bit_equal": equal}
    counts["seconds"] = round(time.monotonic() - began)
    seeds = [seed]
    if add and (path := results / "resume.json").is_file():
        earlier = json.loads(path.read_text())
        if earlier["commit"] != commit() or seed in earlier["seeds"]:
            raise click.UsageError(f"{path} is of another commit, or has seed {seed} already")
        counts = {name: value + earlier[name] for name, value in counts.items()}
        seeds = [*earlier["seeds"], seed]
    values = {
        "seeds": seeds,
        "worlds": sorted(set(WORLDS)),
        "workers": sorted(set(WORKERS)),
        **counts,
    }
    report("resume", values, results)
    if equal != read:
        raise click.ClickException(f"{read - equal} of {read} batches differ")


if __name__ == "__main__":
    main()
