"""Two promises of generation: N processes make N times as much, and memory does not grow.

    python -m benchmarks.scaling

Rates are of 1 and of N local processes, in turn, on the CPU with a small U-Net, between the first
and the last shards of a run, so without starts. Memory is the peak of a process that makes a whole
set with a stub in place of the model, for a thousand anchors and for a million (5 minutes, 2 GB).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.common import RESULTS, peak_memory, report, tiny_unet
from clsp.generate.config import GenerateConfig
from clsp.generate.output import Folder
from clsp.generate.plan import ModelInfo, claim, make_plan
from clsp.shards.images import open_images


def rate(folder: Path, workers: int, shards: int) -> float:
    """Return anchors a second of so many local processes in the middle of a run."""
    from clsp.generate.diffusion import open_model
    from clsp.generate.engines.local import run_local
    from clsp.generate.job import Job

    config = GenerateConfig(positives=4, steps=6, batch=8, shard_size=8, site="mid_block")
    opened, output = open_model(str(folder / "model")), Folder(folder / f"{workers}")
    source = open_images("digits")
    plan = make_plan(config, ModelInfo(opened.sha256, opened.image_size), source)
    job = Job(plan, "digits", str(folder / "model"), output)
    times: list[float] = []
    run_local(job, list(range(shards)), ["cpu"] * workers, lambda _: times.append(time.monotonic()))
    first, last = 2 * workers, len(times) - 1 - workers  # all at work
    return (last - first) * config.batch / (times[last] - times[first])


def rates(most: int, shards: int, rounds: int) -> dict[str, float]:
    """Return the median rate of one process and of `most`, and the share of the ideal."""
    from diffusers import DDPMPipeline, DDPMScheduler

    found: dict[int, list[float]] = {1: [], most: []}
    for _ in range(rounds):
        for workers in found:
            with tempfile.TemporaryDirectory() as name:
                unet = tiny_unet(side=32)
                DDPMPipeline(unet, DDPMScheduler()).save_pretrained(Path(name) / "model")
                found[workers].append(rate(Path(name), workers, shards * workers))
    one, many = (statistics.median(values) for values in found.values())
    return {
        "processes": most,
        "anchors_per_second_of_1": round(one, 2),
        f"anchors_per_second_of_{most}": round(many, 2),
        "share_of_ideal": round(many / one / most, 3),
    }


class Anchors:
    """So many anchors, of which none is held; they are all the same picture."""

    spec, labels, classes = "folder:stub", None, None

    def __init__(self, count: int) -> None:
        self._count, self._image = count, open_images("digits").read(0)

    def __len__(self) -> int:
        return self._count

    def key(self, index: int) -> str:
        return f"anchor-{index:08d}"

    path = key

    def read(self, index: int) -> Any:
        return self._image

    def file_sha256(self, index: int) -> None:
        return None


def make_set(anchors: int) -> float:
    """Make and finish a set with a stub for the model; return this process's peak in MiB.

    All else is as in a run: the plan, its marks, records, shards, receipts, and the manifest.
    """
    from clsp.generate.job import Job, Worker, finalise

    config = GenerateConfig(positives=1, anchors=False)
    source: Any = Anchors(anchors)
    plan = make_plan(config, ModelInfo("0" * 64, 8), source)

    def sample(pixels: np.ndarray, keys: list[str], labels: None) -> tuple[np.ndarray, np.ndarray]:
        return pixels[:, None], np.zeros((len(pixels), 1), np.float32)

    worker: Any = object.__new__(Worker)  # whose model would be opened here
    worker.source, worker.device = source, torch.device("cpu")
    worker.sampler = SimpleNamespace(
        config=config,
        sample=sample,
        layout=dict,
        model=SimpleNamespace(image_size=8, label_rows=0),
    )
    with tempfile.TemporaryDirectory() as name:
        output = Folder(Path(name))
        claim(plan, output)
        worker.job = Job(plan, source.spec, "stub", output)
        for shard in worker.job.todo():
            worker.make(shard)
        assert finalise(worker.job).samples == anchors
    return peak_memory()


def peak(anchors: int) -> float:
    """Return `make_set` of a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scaling", f"--make-set={anchors}"]
    return float(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def main() -> None:
    """Measure rates, or memory, or both, and report them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--part", choices=("rates", "memory"), action="append")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--shards", type=int, default=20, help="for each process")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--anchors", type=int, default=1_000_000)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--make-set", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make_set:
        print(make_set(options.make_set))
        return
    parts = options.part or ["rates", "memory"]
    if "rates" in parts:
        found = rates(options.processes, options.shards, options.rounds)
        report("scaling", found, options.results)
    if "memory" in parts:
        found = {}
        for anchors in (1000, options.anchors):
            began = time.monotonic()
            found[f"peak_MiB_of_{anchors}"] = round(peak(anchors), 1)
            found[f"seconds_of_{anchors}"] = round(time.monotonic() - began)
        report("memory", found, options.results)


if __name__ == "__main__":
    main()
