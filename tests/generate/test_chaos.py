"""The short form of `python -m benchmarks.chaos`: kills, and the same bytes in the end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("engine", "kills"), [("local", 20), ("accelerate", 20)])
def test_a_set_survives_kills(engine: str, kills: int, tmp_path: Path) -> None:
    """SIGKILL workers, ranks and whole jobs at random moments; compare all bytes."""
    flags = [f"--kills={kills}", f"--engine={engine}", f"--results={tmp_path}"]
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.chaos", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "chaos.json").read_text())[engine]
    assert result["kills"] == kills
    wrong = ("files_that_differ", "records_lost", "records_twice", "temporaries_left")
    assert [result[name] for name in wrong] == [0, 0, 0, 0]
