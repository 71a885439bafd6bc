"""The short form of `python -m benchmarks.chaos`: kills, and the same bytes in the end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.chaos import PAUSES, WRONG

ROOT = Path(__file__).parents[2]


def test_a_set_survives_twenty_kills_with_each_engine(tmp_path: Path) -> None:
    """SIGKILL workers, actors, ranks and whole jobs at random moments; compare all bytes."""
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.chaos", "--kills=20", f"--results={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "chaos.json").read_text())
    for engine in PAUSES:
        assert result[engine]["kills"] == 20
        assert [result[engine][name] for name in WRONG] == [0] * len(WRONG)
