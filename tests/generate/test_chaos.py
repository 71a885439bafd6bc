"""The short form of `python -m benchmarks.chaos`: kills, and the same bytes in the end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import chaos
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


def test_pieces_of_one_commit_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kills made by other code, or by the same seed again, are no further evidence."""
    path, first = tmp_path / "chaos.json", {"seeds": [0], "kills": 20, "seconds": 1.5}
    monkeypatch.setattr(chaos, "commit", lambda: "abc")
    assert chaos.earlier_pieces(path, ["ray"], 0) == {}
    path.write_text(json.dumps({"commit": "abc", "anchors": 120, "ray": first}))
    assert chaos.earlier_pieces(path, ["local"], 0) == {"ray": first}
    with pytest.raises(ValueError, match=r"has kills of ray by seed 0 already"):
        chaos.earlier_pieces(path, ["local", "ray"], 0)
    monkeypatch.setattr(chaos, "commit", lambda: "def")
    with pytest.raises(ValueError, match=r"is of commit abc, and this is def"):
        chaos.earlier_pieces(path, ["ray"], 1)
    second = {"seeds": [1], "kills": 30, "seconds": 2.0}
    assert chaos.add_up(first, second) == {"seeds": [0, 1], "kills": 50, "seconds": 3.5}
    assert chaos.add_up({}, first) == first
