"""The stream after random cuts: the short form of `python -m benchmarks.resume`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_batches_are_bit_equal_after_200_random_cuts(tmp_path: Path) -> None:
    """Pixels, keys and augmented views, over 1 to 6 ranks and 0 to 3 workers."""
    command = [sys.executable, "-m", "benchmarks.resume", "--cuts=200", f"--results={tmp_path}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    result = json.loads((tmp_path / "resume.json").read_text())
    assert result["batches"] == result["bit_equal"] > 200
    assert result["lives"] > 5
