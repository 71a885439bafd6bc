"""Hostile sets: nothing runs, nothing crashes, nothing hangs, and the error says what was found."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .hostile import CASES, files, tar_of

PROBE = Path(__file__).parent / "probe.py"
MOST_SECONDS = 5


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What reading each set came to, by its name; "whole" is one that nothing is wrong with."""
    root = tmp_path_factory.mktemp("hostile")
    for name, make in [("whole", tar_of(files)), *((n, c[0]) for n, c in CASES.items())]:
        (root / name / "data").mkdir(parents=True)
        make(root / name)
    names = "\n".join(str(path) for path in sorted(root.iterdir()))
    command = [sys.executable, str(PROBE)]
    result = subprocess.run(command, input=names, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr
    found = [json.loads(line) for line in result.stdout.splitlines()]
    return {each["set"]: each for each in found}


def test_there_are_many(outcomes: dict[str, Any]) -> None:
    assert len(CASES) >= 60
    assert outcomes.keys() == {"whole", *CASES}


def test_a_set_that_is_whole_passes(outcomes: dict[str, Any]) -> None:
    whole = outcomes["whole"]
    assert (whole["kind"], whole["index"]["kind"], whole["ran"]) == ("nothing", "nothing", [])


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_set_is_refused(outcomes: dict[str, Any], name: str) -> None:
    found = outcomes[name]
    assert found["kind"] == "ShardError", found
    assert re.search(CASES[name][1], found["message"]), found["message"]
    assert found["ran"] == []
    assert found["seconds"] < MOST_SECONDS
    assert found.get("index", {}).get("kind", "ShardError") in ("ShardError", "nothing")
    assert found["message"].isprintable()
    assert len(found["message"]) < 600


def test_an_index_is_made_of_no_hostile_tar(outcomes: dict[str, Any]) -> None:
    """Where it is the tar that is hostile, `clsp shards index` does not take it either."""
    tars = list(CASES)[: list(CASES).index("PNG of 60,000 pixels a side")]
    assert [n for n in tars if outcomes[n]["index"]["kind"] != "ShardError"] == []
