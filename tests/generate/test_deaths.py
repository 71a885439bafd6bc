"""A process killed in each phase of its work: the run ends, and a rerun makes the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.faults import contents
from clsp.generate import run
from clsp.generate.config import GenerateConfig
from clsp.generate.run import generate

HERE = Path(__file__).parent
TINY = GenerateConfig(positives=1, steps=2, batch=4, shard_size=20)
FLAGS = ["--positives=1", "--steps=2", "--batch=4", "--shard-size=20", "--device=cpu"]
PHASES = (
    "planning",
    "loading",
    "sampling",
    "writing",
    "renaming",
    "receipt",
    "finalising",
    "manifest",
)


@pytest.fixture(scope="module")
def killed(
    digit_folder: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, list[list[int]]]]:
    """Where sets were made by ranks of which one was killed, and the exit codes of all."""
    folder = tmp_path_factory.mktemp("killed")
    places = [f"--images=folder:{digit_folder}", f"--model={tiny_model}"]
    run = subprocess.run(
        [sys.executable, HERE / "deaths.py", folder, *places, *FLAGS],
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
        stdout=subprocess.PIPE,
        timeout=600,
        check=True,
    )
    return folder, json.loads(run.stdout)


@pytest.mark.parametrize("phase", PHASES)
def test_a_rank_killed_in_a_phase(
    killed: tuple[Path, dict[str, list[list[int]]]], phase: str
) -> None:
    """Its own exit code says so, within a minute; the other rank and the rerun do the rest."""
    folder, codes = killed
    assert sorted(codes[phase][0]) == [-signal.SIGKILL, 0]
    assert codes[phase][1] == [0, 0, 0]
    assert contents(folder / phase) == contents(folder / "calm")


@pytest.mark.parametrize("phase", PHASES[1:6])
def test_a_local_worker_killed_in_a_phase(
    killed: tuple[Path, dict[str, list[list[int]]]],
    digit_folder: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    phase: str,
) -> None:
    """It is replaced, and the run ends as if nothing had been."""
    monkeypatch.syspath_prepend(HERE)  # where workers find the module, by this name
    from deaths import Deadly

    place, mark = tmp_path / "set", tmp_path / "mark"
    monkeypatch.setattr(run, "open_output", lambda _: Deadly(place, phase, mark))
    generate(TINY, f"folder:{digit_folder}", str(tiny_model), place, device="cpu", workers=2)
    assert mark.exists(), "no worker was killed"
    assert contents(place) == contents(killed[0] / "calm")
