"""What every benchmark shares: alternating timings, and a result that says what made it."""

from __future__ import annotations

import json
import operator
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clsp.evaluate.about import commit, hardware

RESULTS = Path(__file__).parent / "results"


def alternate(tasks: Mapping[str, Callable[[], object]], rounds: int = 3) -> dict[str, float]:
    """Return the median seconds of each task, timed in turn as by `in_turn`."""
    return {name: statistics.median(times) for name, times in in_turn(tasks, rounds).items()}


def in_turn(tasks: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each task in each round: A B A B ...

    In turn, so that a machine that slows down for a while slows every task. Each task runs once
    beforehand, unmeasured.
    """
    for task in tasks.values():
        task()
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            began = time.perf_counter()
            task()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(above: list[float], below: list[float]) -> float:
    """Return the median of the rounds' ratios, which is calmer than the ratio of the medians."""
    return statistics.median(map(operator.truediv, above, below))


def command() -> str:
    """Return the command line of this benchmark, as a user would type it."""
    main = sys.modules["__main__"].__spec__
    name = f"-m {main.name}" if main else sys.argv[0]
    return " ".join(["python", name, *sys.argv[1:]])


def report(name: str, values: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Print a result with command, commit and hardware, and keep it as `folder`/NAME.json."""
    packages = {p: _version(p) for p in ("torch", "diffusers")}
    about = {"command": command(), "commit": commit(), "hardware": hardware(), **packages}
    text = json.dumps({**about, **values}, indent=2)
    print(text)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(text + "\n")
    return path


def tiny_unet(channels: int = 3, side: int = 8, **more: Any) -> Any:
    """Return an untrained `UNet2DModel` of two levels, with the same weights every time.

    It stands for a diffusion model where its images do not matter, in the tests too. `more` goes
    to its constructor.
    """
    import torch
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        add_attention=False,
        **more,
    ).eval()


def peak_memory() -> float:
    """Return the most memory that this process has held, in MiB."""
    # ru_maxrss would be that of the process which started this one, if that was larger.
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 2**10


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
