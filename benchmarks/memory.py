"""The memory of a rank that trains on a huge set, most of whose shards are one and the same file.

    python -m benchmarks.memory SET

prints what one such rank takes; `benchmarks.train` compares two sets by it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import peak_memory
from clsp.shards.images import encode_image
from clsp.shards.manifest import Manifest, save_manifest
from clsp.shards.record import Record
from clsp.shards.store import open_set
from clsp.shards.writer import write_shard
from clsp.train.config import TrainConfig
from clsp.train.encoder import ProjectedEncoder
from clsp.train.objectives.objective import unit
from clsp.train.objectives.positive import positive_term
from clsp.train.objectives.simclr import nt_xent
from clsp.train.tuples import TupleBatches, load_tuples
from clsp.train.views import make_views

SAMPLES, SIDE, STEPS = 1000, 8, 10
SHARDS = {"ten_thousand_records": 10, "ten_million_records": 10_000}


def write_huge_set(folder: Path, shards: int) -> None:
    """Write a set of `shards` times 1,000 records; the shards are links to one file."""
    dice = np.random.default_rng(0)
    (folder / "data").mkdir(parents=True)
    pixels = dice.integers(0, 256, (SAMPLES, 2, SIDE, SIDE, 3), np.uint8)
    records = (
        Record(f"k{n}", encode_image(anchor, "png"), (encode_image(positive, "png"),))
        for n, (anchor, positive) in enumerate(pixels)
    )
    first = write_shard(folder / "data" / "train-00000.tar", records, 1)
    files = [first]
    for number in range(1, shards):
        shard = replace(first, name=f"data/train-{number:05d}.tar")
        for name in ("name", "index_name"):
            (folder / getattr(shard, name)).symlink_to(Path(getattr(first, name)).name)
        files.append(shard)
    save_manifest(folder, Manifest(1, "png", SIDE, shards * SAMPLES, tuple(files)))


def train_a_little(folder: Path) -> dict[str, float]:
    """Open a set and train some steps of its second epoch; return seconds and MiB."""
    torch.set_num_threads(1)
    imported = int(peak_memory())
    began = time.monotonic()
    shards = open_set(folder)
    seconds = time.monotonic() - began
    config = TrainConfig(arch="conv-tiny", positive="synthetic", batch=64)
    batches = TupleBatches(shards, config.batch, 0, positives=1)
    model = ProjectedEncoder(config)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    began = time.monotonic()
    for item in load_tuples(batches, batches.per_epoch, batches.per_epoch + STEPS):
        z = [unit(part) for part in model(make_views(item, config, torch.device("cpu")))]
        optimizer.zero_grad()
        (nt_xent(z[0], z[1], 0.2) + positive_term(z[0], z[2])).backward()
        optimizer.step()
    return {
        "records": len(shards),
        "seconds_to_open": round(seconds, 2),
        f"seconds_of_{STEPS}_steps": round(time.monotonic() - began, 2),
        "MiB_of_imports": imported,
        "peak_MiB": int(peak_memory()),
    }


def measure_memory(folder: Path) -> dict[str, object]:
    """Return what `train_a_little` finds of each size of set, in a process of its own."""
    found = {}
    for name, shards in SHARDS.items():
        write_huge_set(folder / name, shards)
        command = [sys.executable, "-m", "benchmarks.memory", str(folder / name)]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        found[name] = json.loads(result.stdout)
    return found


if __name__ == "__main__":
    print(json.dumps(train_a_little(Path(sys.argv[1]))))
