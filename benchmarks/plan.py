"""Plan ten million anchors: seconds, and the most memory it took.

    python -m benchmarks.plan --anchors 10000000

`--files` of them lie on a disk as empty files, a thousand to a folder; for all `--anchors` the
paths are made up, which leaves out the disk alone; the seconds that this takes are part of those
to open, and also reported.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from benchmarks.common import RESULTS, report
from clsp.generate.config import GenerateConfig
from clsp.generate.plan import ModelInfo, make_plan
from clsp.shards import images
from clsp.shards.images import open_images

MODEL = ModelInfo("0" * 64, 32)
NAME = "n{0:08d}/n{0:08d}_{1:05d}.JPEG"  # as ImageNet's


def names(count: int) -> Iterator[str]:
    """Yield `count` paths, a thousand to a folder."""
    return (NAME.format(number // 1000, number % 1000) for number in range(count))


def plan_folder(folder: Path) -> dict[str, float]:
    """Open and plan a folder of images; return seconds and the process's peak memory so far.

    CPU seconds beside those of the clock: another process may be at work.
    """
    cpu = time.process_time()
    began = time.perf_counter()
    source = open_images(f"folder:{folder}")
    opened = time.perf_counter()
    plan = make_plan(GenerateConfig(), MODEL, source)
    return {
        "anchors": len(source),
        "shards": plan.shards,
        "seconds_to_open": round(opened - began, 2),
        "seconds_to_plan": round(time.perf_counter() - opened, 2),
        "seconds_of_cpu": round(time.process_time() - cpu, 2),
        "peak_GiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
    }


def main() -> None:
    """Time opening and planning so many anchors, and report both."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--anchors", type=int, default=10_000_000)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for path in names(options.files):
            (Path(name) / path).parent.mkdir(exist_ok=True)
            (Path(name) / path).touch()
        on_disk = plan_folder(Path(name))
    images._walk = lambda folder: names(options.anchors)  # type: ignore[assignment,misc]
    with tempfile.TemporaryDirectory() as name:
        made_up = plan_folder(Path(name))
    began = time.perf_counter()
    deque(names(options.anchors), maxlen=0)
    made_up["seconds_to_make_up_paths"] = round(time.perf_counter() - began, 2)
    report("plan", {"files": on_disk, "paths": made_up}, options.results)


if __name__ == "__main__":
    main()
