"""The fuzzer itself: a few trials pass, and a reader that breaks is noticed, however it breaks."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import fuzz


def test_damaged_sets_are_refused_or_harmless(tmp_path: Path) -> None:
    result = CliRunner().invoke(fuzz.main, ["--n", "150", "--results", str(tmp_path)])
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "fuzz.json").read_text())
    kinds = ("refused", "same", "other", "silent", "crashed", "hung", "died")
    assert sum(found[kind] for kind in kinds) == found["trials"] == 150
    assert found["refused"] > 100
    assert found["bad"] == []


def test_what_goes_wrong_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in fuzz.FORMATS:
        fuzz.write_set(tmp_path / name, name)
    whole = {name: fuzz.read_set(tmp_path / name) for name in fuzz.FORMATS}
    asked = iter(range(100))

    def broken(folder: Path, pixels: object) -> str:
        number = next(asked)
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 3:
            time.sleep(60)
        return "crashed: KeyError('x')" if number == 2 else "other"

    monkeypatch.setattr(fuzz, "outcome", broken)
    # Each process that goes on behind a dead one asks from the first number again.
    first = [what.partition(":")[0] for _, what, _ in fuzz.run(0, 2, tmp_path, whole, 30)]
    assert first[1] == "died"
    for _ in range(2):
        next(asked)
    rest = [what.partition(":")[0] for _, what, _ in fuzz.run(2, 4, tmp_path, whole, 1)]
    assert rest == ["crashed", "hung"]


def test_pixels_that_change_unnoticed_are_silent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in fuzz.FORMATS:
        fuzz.write_set(tmp_path / name, name)
    whole = {name: fuzz.read_set(tmp_path / name) for name in fuzz.FORMATS}
    monkeypatch.setattr(fuzz, "outcome", lambda folder, pixels: "other")
    found = [what.partition(":")[0] for _, what, _ in fuzz.run(0, 30, tmp_path, whole, 30)]
    assert {"silent", "other"} == set(found)
