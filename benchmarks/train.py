"""How fast training is fed, what a step costs, and what is read for it.

    python -m benchmarks.train --images cifar10:data                                     # a CPU
    python -m benchmarks.train --images cifar10:data --step-batch 1024 --epochs 20       # a GPU

Input, on one core: tuples a second, against a loader that works as the reference implementation
does, one PIL image at a time and six augmentations for the three views that are used. Step: a whole
optimiser step in float32 and eager, against the fast settings, and with constant tensors in place
of real input. Bytes: what a tuple costs to read from local shards, against its two images. Memory:
the peak of a rank that trains on ten million records, against one with a thousandth of them. With
--epochs, also the time of a whole run on 50,000 tuples.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

from clsp.shards.images import encode_image, load_pixels, open_images
from clsp.shards.reader import ShardSet
from clsp.shards.record import Record
from clsp.shards.store import index_folder, open_set
from clsp.shards.writer import write_shard
from clsp.train.config import TrainConfig
from clsp.train.encoder import ProjectedEncoder
from clsp.train.loop import train
from clsp.train.objectives.positive import positive_term
from clsp.train.objectives.simclr import nt_xent
from clsp.train.optimizers import build_optimizer
from clsp.train.options import RunOptions
from clsp.train.tuples import TupleBatches, decoded_set, load_tuples
from clsp.train.views import make_views

from .common import alternate, report
from .memory import measure_memory

POSITIVES, A_SHARD = 8, 10_000
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def write_set(folder: Path, images: str, samples: int, size: int) -> ShardSet:
    """Return a set of real images whose positives are the images that follow."""
    source = open_images(images)
    rows = np.arange(samples + POSITIVES) % len(source)
    encoded = [encode_image(image, "png") for image in load_pixels(source, rows.tolist(), size)]
    hashes = {"source": images, "w": 0.1, "seed": 0}  # a JSON of about the real length
    (folder / "data").mkdir(parents=True)
    for number, first in enumerate(range(0, samples, A_SHARD)):
        records = (
            Record(f"image-{n:06d}", encoded[n], tuple(encoded[n + 1 : n + 1 + POSITIVES]), hashes)
            for n in range(first, min(first + A_SHARD, samples))
        )
        write_shard(folder / "data" / f"train-{number:05d}.tar", records, POSITIVES)
    return index_folder(folder)


class ReferenceInput(Dataset[list[Tensor]]):
    """Three views of a tuple as the reference makes them: of six, each from a PIL image."""

    def __init__(self, pixels: np.ndarray, config: TrainConfig) -> None:
        self.pixels = pixels
        brightness, contrast, saturation, hue = config.jitter
        jitter = transforms.ColorJitter(brightness, contrast, saturation, hue)
        self.augment = transforms.Compose(
            [
                transforms.RandomResizedCrop(pixels.shape[2], scale=(config.crop_min, 1.0)),
                transforms.RandomHorizontalFlip(config.flip_p),
                transforms.RandomApply([jitter], config.jitter_p),
                transforms.RandomGrayscale(config.grey_p),
                transforms.ToTensor(),
                transforms.Normalize(config.mean, config.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> list[Tensor]:
        slot = int(torch.randint(1, self.pixels.shape[1], ()))
        views = [
            self.augment(Image.fromarray(self.pixels[index, place]))
            for place in (0, slot)
            for _ in range(3)
        ]
        return [views[0], views[1], views[3]]


def forever(make: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    return itertools.chain.from_iterable(make() for _ in itertools.count())


def input_speed(shards: ShardSet, cache: Path, config: TrainConfig) -> dict[str, float]:
    """Return tuples a second on one core of both ways, and their ratio."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    pixels = decoded_set(shards, cache)
    assert pixels is not None
    memory = np.array(pixels)
    # In this process: one of its own would go on, on the same core, while ours is timed.
    loader = DataLoader(
        ReferenceInput(memory, config), config.batch, shuffle=True, num_workers=0, drop_last=True
    )
    reference = forever(lambda: iter(loader))
    batches = TupleBatches(shards, config.batch, 0, positives=1, pixels=pixels)
    ours = load_tuples(batches, 0, 10**9)
    seconds = alternate(
        {
            "reference": lambda: next(reference),
            "clsp": lambda: make_views(next(ours), config, torch.device("cpu")),
        },
        rounds=9,
    )
    os.sched_setaffinity(0, cores)
    speed = {name: config.batch / value for name, value in seconds.items()}
    return {**speed, "ratio": speed["clsp"] / speed["reference"]}


class Step:
    """One optimiser step of CLSP-SimCLR, by its settings."""

    def __init__(self, config: TrainConfig, size: int, *, fast: bool) -> None:
        torch.manual_seed(0)
        self.fast = fast
        self.model = ProjectedEncoder(config, size).to(DEVICE)
        if fast:
            self.model.to(memory_format=torch.channels_last)
            if DEVICE.type == "cuda":
                self.model.backbone.compile()
        self.optimizer = build_optimizer(config, self.model)
        self.temperature = config.temperature

    def __call__(self, views: list[Tensor]) -> None:
        if self.fast:
            views = [view.contiguous(memory_format=torch.channels_last) for view in views]
        half = self.fast and DEVICE.type == "cuda"
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=half):
            z = self.model(views)
        loss = nt_xent(z[0], z[1], self.temperature) + positive_term(z[0], z[2])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()


def step_speed(shards: ShardSet, cache: Path, config: TrainConfig) -> dict[str, float]:
    """Return seconds of a step with plain and fast settings and constant input; and the MFU."""
    size = shards.manifest.image_size
    batches = TupleBatches(shards, config.batch, 0, positives=1, pixels=decoded_set(shards, cache))
    stream = load_tuples(batches, 0, 10**9, pin_memory=DEVICE.type == "cuda")
    constant = make_views(batches[0], config, DEVICE)
    plain, fast = (Step(config, size, fast=fast) for fast in (False, True))
    seconds = alternate(
        {
            "float32_eager": lambda: plain(constant),
            "fast": lambda: fast(constant),
            "fast_with_input": lambda: fast(make_views(next(stream), config, DEVICE)),
        }
    )
    with FlopCounterMode(display=False) as counter:
        plain(constant)
    peak = matmul_speed(torch.bfloat16 if DEVICE.type == "cuda" else torch.float32)
    return {
        **{f"seconds_{name}": value for name, value in seconds.items()},
        "speedup_fast": seconds["float32_eager"] / seconds["fast"],
        "input_over_constant": seconds["fast_with_input"] / seconds["fast"],
        "tflop_a_step": counter.get_total_flops() / 1e12,
        "mfu": counter.get_total_flops() / seconds["fast"] / peak,
    }


def matmul_speed(dtype: torch.dtype, side: int = 2048) -> float:
    """Return FLOP a second of a large matrix product: the peak that the MFU is a share of."""
    a = torch.randn(side, side, device=DEVICE, dtype=dtype)

    def run() -> None:
        a @ a
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    return 2 * side**3 / alternate({"matmul": run})["matmul"]


def whole_run(folder: Path, images: str, tuples: int, epochs: int, batch: int) -> dict[str, Any]:
    """Return the minutes of `clsp train` with a ResNet-18, from its start to the export."""
    shards = write_set(folder / "whole", images, tuples, 32)
    cuda = DEVICE.type == "cuda"
    options = RunOptions(precision="bf16" if cuda else "no", compile=cuda, trackers=())
    config = TrainConfig(positive="synthetic", epochs=epochs, batch=batch)
    began = time.monotonic()
    train(config, shards.folder, folder / "run", cache=folder / "cache", options=options)
    minutes = (time.monotonic() - began) / 60
    return {"tuples": tuples, "epochs": epochs, "batch": batch, "minutes": minutes}


def bytes_read(shards: ShardSet) -> dict[str, float]:
    """Return bytes a tuple that this process reads, and those of its two images.

    In the first epoch each record's JSON is read too, which holds the images' hashes; of a set of
    this size they are kept.
    """
    shards = open_set(shards.folder)  # which has kept no hash yet
    batches = TupleBatches(shards, 64, 0, positives=1)
    _ = shards.keys  # indexes are read once, not once an epoch
    sizes = []
    for row in range(0, len(shards), 7):
        content = shards.read(row)
        images = [len(content[name]) for name in content if name not in ("anchor", "json")]
        sizes.append(len(content["anchor"]) + float(np.mean(images)))
    found = []
    for epoch in range(3):
        before = _characters_read()
        for step in range(batches.per_epoch):
            batches[epoch * batches.per_epoch + step]
        found.append((_characters_read() - before) / (64 * batches.per_epoch))
    images = float(np.mean(sizes))
    return {
        "two_images": images,
        "bytes_a_tuple_first_epoch": found[0],
        "bytes_a_tuple": found[2],
        "ratio_first_epoch": found[0] / images,
        "ratio": found[2] / images,
    }


def _characters_read() -> int:
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


@click.command()
@click.option("--images", default="digits", show_default=True, help="Image source, at 32 pixels.")
@click.option("--samples", default=2048, show_default=True, type=click.IntRange(min=64))
@click.option("--batch", default=256, show_default=True, type=click.IntRange(min=2))
@click.option("--step-batch", default=32, show_default=True, type=click.IntRange(min=2))
@click.option("--epochs", default=0, show_default=True, help="Of a whole run; 0: none.")
@click.option("--tuples", default=50_000, show_default=True, help="Of a whole run.")
def main(images: str, samples: int, batch: int, step_batch: int, epochs: int, tuples: int) -> None:
    """Measure input, step, bytes and memory, and perhaps a whole run."""
    torch.set_num_threads(1 if DEVICE.type == "cpu" else torch.get_num_threads())
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        small = write_set(folder / "small", images, samples, 32)
        large = write_set(folder / "large", images, 256, 128)
        config = TrainConfig(positive="synthetic", batch=batch)
        steps = TrainConfig(positive="synthetic", batch=step_batch)
        values = {
            "images": images,
            "input": input_speed(small, folder / "cache", config),
            "step": {"batch": step_batch} | step_speed(small, folder / "cache", steps),
            "bytes_from_shards_32": bytes_read(small),
            "bytes_from_shards_128": bytes_read(large),
            "memory": measure_memory(folder),
        }
        if epochs:
            values["whole_run"] = whole_run(folder, images, tuples, epochs, step_batch)
    report("train", {**values, "seconds": round(time.monotonic() - began)})


if __name__ == "__main__":
    main()
