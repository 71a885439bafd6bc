"""Faults at every place of a shard's writing: no partial shard is ever visible."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.faults import KINDS, NAME, WRONG, broken_member, broken_write, contents, records
from clsp.generate.output import Folder
from clsp.shards.record import members

ROOT = Path(__file__).parents[2]
TOTAL = sum(len(members(record)) for record in records())


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    Folder(tmp_path / "whole").add_shard(NAME, records(), positives=1)
    return contents(tmp_path / "whole")


def test_an_error_at_any_member_leaves_nothing(whole: dict[str, bytes], tmp_path: Path) -> None:
    output = Folder(tmp_path / "set")
    for number in range(TOTAL):
        with broken_member(number), pytest.raises(RuntimeError, match="a fault"):
            output.add_shard(NAME, records(), positives=1)
        assert contents(output.root) == {}
    output.add_shard(NAME, records(), positives=1)
    assert contents(output.root) == whole


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
def test_a_failed_write_anywhere_leaves_no_shard(
    whole: dict[str, bytes], tmp_path: Path, code: int
) -> None:
    """The write that fails has put half of its bytes on the disk, as a full one does."""
    output = Folder(tmp_path / "set")
    for number in range(TOTAL + 2):  # the end of the tar, and the index
        with broken_write(number, code), pytest.raises(OSError, match="a fault") as raised:
            output.add_shard(NAME, records(), positives=1)
        assert raised.value.errno == code
        assert contents(output.root) == {}
    with broken_write(TOTAL + 2, code):  # which there is none of
        output.add_shard(NAME, records(), positives=1)
    assert contents(output.root) == whole


def test_no_fault_of_any_kind_shows_a_partial_shard(tmp_path: Path) -> None:
    """The short form of `python -m benchmarks.faults`: terminated and torn uploads, too."""
    flags = ["--faults=25", f"--results={tmp_path}"]
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.faults", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "faults.json").read_text())
    assert [result[kind] for kind in KINDS] == [5] * len(KINDS)
    assert [result[name] for name in WRONG] == [0] * len(WRONG)
    assert result["unharmed"] < 10  # the others were broken indeed
