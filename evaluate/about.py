"""What made a result: the code's commit and the hardware, in words."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parent.parent


def commit() -> str:
    """Return the checkout's commit, with a plus sign when files differ from it.

    Recorded results are none of those: they make nothing. Of an installed package, its version.
    """
    if (ROOT / ".git").exists():
        name = _git("describe", "--always", "--abbrev=10")
        if name is not None:
            changes = _git("status", "--porcelain", "-uno", "--", ".", ":!benchmarks/results")
            return f"{name}+" if changes else name
    try:
        return f"clsp {version('clsp')}"
    except PackageNotFoundError:
        return "unknown"


def _git(*arguments: str) -> str | None:
    found = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else None


def hardware() -> str:
    """Return cores in use, processor and GPU."""
    cores = len(os.sched_getaffinity(0))
    words = f"{cores} cores of {_processor()}"
    import torch  # here, because a measurement of memory may want to be without it

    return f"{words}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else words


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
