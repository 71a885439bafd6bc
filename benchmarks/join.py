"""Does joining ever pair a record with another record's anchor? Randomised trials.

Each trial takes a set that carries no anchors and the folder it was made from, does random things
to the folder (renames, swaps, deletes, re-encodes, changes a level of one pixel, cuts, copies),
joins, and compares every pair with the anchor's own pixels. It also counts what it should have
found: an anchor whose pixels are still somewhere in the folder must not be called missing.
"""

from __future__ import annotations

import io
import random
import tempfile
from collections import Counter
from pathlib import Path

import click
import numpy as np
from PIL import Image

from clsp.shards.images import encode_image, open_images
from clsp.shards.manifest import Manifest, save_manifest
from clsp.shards.pairing import pair_anchors, without_anchor
from clsp.shards.record import Record
from clsp.shards.store import open_set
from clsp.shards.writer import write_shard

from .common import RESULTS, report

ANCHORS = 10


def write_source(folder: Path, pixels: np.ndarray) -> None:
    """Write images as FOLDER/x/N.png, with a text chunk, so that another encoder differs."""
    (folder / "x").mkdir(parents=True)
    for number, image in enumerate(pixels):
        path = folder / "x" / f"{number}.png"
        Image.fromarray(image).save(path, "PNG", compress_level=1)


def write_stripped(folder: Path, images: Path) -> None:
    """Write the positives-only set of the images; its positives are of no interest here."""
    source = open_images(f"folder:{images}")
    (folder / "data").mkdir(parents=True)
    records = []
    for index in range(len(source)):
        anchor = encode_image(np.asarray(source.read(index)), "png")
        meta = {"source": source.path(index), "source_sha256": source.file_sha256(index)}
        records.append(without_anchor(Record(source.key(index), anchor, (anchor,), meta)))
    shard = write_shard(folder / "data" / "train-00000.tar", records, 1)
    save_manifest(folder, Manifest(1, "png", 8, len(records), (shard,), anchors=False))


def disturb(folder: Path, dice: random.Random) -> None:
    """Do one random thing to a folder of images."""
    paths = sorted(path for path in folder.rglob("*.*") if path.is_file())
    path, other = dice.choice(paths), dice.choice(paths)
    kind = dice.choice(("rename", "swap", "delete", "encode", "change", "cut", "copy", "replace"))
    if kind == "rename":
        path.rename(path.with_name(f"{dice.randrange(10**6)}{path.suffix}"))
    elif kind == "swap":
        one, two = path.read_bytes(), other.read_bytes()
        path.write_bytes(two)
        other.write_bytes(one)
    elif kind == "delete" and len(paths) > 1:
        path.unlink()
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[: dice.randrange(1, 60)])
    elif kind == "copy":
        (path.parent / f"copy{dice.randrange(10**6)}.png").write_bytes(path.read_bytes())
    elif kind == "replace":
        path.write_bytes(other.read_bytes())
    elif kind in ("encode", "change"):
        try:
            pixels = np.array(Image.open(path).convert("RGB"))
        except OSError:
            return  # it was cut before
        if kind == "change":
            place = tuple(dice.randrange(size) for size in pixels.shape)
            pixels[place] ^= 1
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, dice.choice(("PNG", "BMP")))
        path.write_bytes(buffer.getvalue())


def pixels_of(path: Path) -> bytes | None:
    """Return a file's pixels; None where it is no image."""
    try:
        return np.asarray(Image.open(path).convert("RGB")).tobytes()
    except OSError:
        return None


def trial(work: Path, number: int) -> Counter[str]:
    """Return how many anchors were paired rightly and wrongly, and how many wrongly given up."""
    dice = random.Random(number)
    pixels = np.random.default_rng(number).integers(0, 256, (ANCHORS, 8, 8, 3), np.uint8)
    # Some look alike but for one level, and two are the same.
    pixels[1], pixels[2] = pixels[0], pixels[0]
    pixels[1, 0, 0, 0] ^= 1
    images = work / f"images{number}"
    write_source(images, pixels)
    write_stripped(work / f"set{number}", images)
    for _ in range(dice.randrange(12)):
        disturb(images, dice)
    shards, source = open_set(work / f"set{number}"), open_images(f"folder:{images}")
    pairing = pair_anchors(shards, source)
    there = {pixels_of(images / source.path(index)) for index in range(len(source))}
    counts: Counter[str] = Counter(pairing.kinds)
    for row, path in enumerate(pairing.paths):
        # The key's order is the source's: x/0, x/1 ...
        wanted = pixels[row].tobytes()
        if path is not None:
            counts["right" if pixels_of(images / path) == wanted else "wrong"] += 1
        elif wanted in there:
            counts["given up"] += 1
    return counts


@click.command()
@click.option("--trials", default=10_000, show_default=True)
@click.option("--results", default=RESULTS, type=click.Path(path_type=Path))
def main(trials: int, results: Path) -> None:
    """Join in so many trials; exit with 1 when a pair was wrong or an anchor was given up."""
    total: Counter[str] = Counter(right=0, wrong=0, **{"given up": 0})
    for start in range(0, trials, 100):
        with tempfile.TemporaryDirectory() as folder:
            for number in range(start, min(start + 100, trials)):
                total += trial(Path(folder), number)
    found = {name: total[name] for name in ("right", "wrong", "given up", *sorted(total))}
    report("join", {"trials": trials, "anchors a trial": ANCHORS, **found}, results)
    raise SystemExit(bool(total["wrong"] or total["given up"]))


if __name__ == "__main__":
    main()
