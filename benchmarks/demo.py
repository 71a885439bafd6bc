"""Run the demo as a newcomer would, and keep its scores, its time, and the memory of all of it.

    python -m benchmarks.demo --out /tmp/clsp-demo

The memory is the sum over the demo and its workers, of which shared pages count once.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import click
import psutil

from .common import report


def memory_of(root: psutil.Process) -> int:
    """Return the bytes in use by a process and all below it, shared pages split among them."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:  # it has ended
            continue
    return total


@click.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A new folder.")
def main(out: Path) -> None:
    """Run `clsp demo`, and write benchmarks/results/demo.json."""
    began, peak = time.monotonic(), 0
    demo = subprocess.Popen([sys.executable, "-m", "clsp.demo", "--out", str(out)])
    while demo.poll() is None:
        try:
            peak = max(peak, memory_of(psutil.Process(demo.pid)))
        except psutil.NoSuchProcess:
            break
        time.sleep(0.5)
    seconds = time.monotonic() - began
    if demo.wait():
        sys.exit(f"the demo ended with exit code {demo.returncode}")
    found = json.loads((out / "results.json").read_text())
    scores = {
        arm: {
            name: {
                "mean": statistics.mean(values := [seed[name] for seed in seeds]),
                "deviation": statistics.stdev(values),
            }
            for name in ("1_shot", "5_shot", "knn", "linear_top1")
        }
        for arm, seeds in found["scores"].items()
    }
    report(
        "demo",
        {
            "seconds": round(seconds, 1),
            "peak_memory_of_all_processes_GiB": round(peak / 2**30, 2),
            "scores": scores,
            "positives_read_as_the_anchors_digit": found["agreement"],
        },
    )


if __name__ == "__main__":
    main()
