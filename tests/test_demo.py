"""The demo in small: every stage runs, and a rerun finds everything done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from clsp.demo import ARMS, POSITIVES, main
from clsp.shards.store import open_set


def test_every_stage_runs_and_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POSITIVES, "steps", 2)
    flags = [f"--out={tmp_path}", "--seeds=2", "--fit-steps=40", "--epochs=2", "--workers=2"]
    result = CliRunner().invoke(main, flags)
    assert result.exit_code == 0, result.output
    sets = [open_set(tmp_path / "positives" / part) for part in ("train", "test")]
    assert sum(map(len, sets)) == 1797
    assert {shards.positives for shards in sets} == {4}
    values = json.loads((tmp_path / "results.json").read_text())
    assert set(values["scores"]) == set(ARMS)
    for scores in values["scores"].values():
        assert len(scores) == 2
        assert all(0 <= score["1_shot"] <= 100 for score in scores)
    assert 0 <= values["agreement"] <= 100
    text = (tmp_path / "report.html").read_text()
    assert text.count("<img") == 4
    assert "1-shot" in text
    again = CliRunner().invoke(main, flags)
    assert again.exit_code == 0
    repeated = json.loads((tmp_path / "results.json").read_text())
    assert repeated["scores"] == values["scores"]


def test_a_bad_number_is_a_usage_error() -> None:
    result = CliRunner().invoke(main, ["--seeds=0"])
    assert result.exit_code == 2
    assert "0 is not in the range x>=1" in result.output
