"""One rank of several fails: all stop and say the same, and a minute is enough for that."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from clsp.shards.reader import ShardSet
from clsp.train import watch

# Streamed from the shards, so that one rank alone meets the damage; one of its steps can be fatal.
_RANK = """
import os, signal, sys
from clsp.train import loop, tuples
from clsp.train.__main__ import main

tuples.MOST_CACHED = 0
rate, fatal = loop.learning_rate, sys.argv.pop(1)

def die(config, epoch):
    if epoch > 1 and os.environ["RANK"] == fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    return rate(config, epoch)

loop.learning_rate = die
main()
"""


def run(launch, world: int, tmp_path: Path, folder: Path, fatal: str, workers: int = 0) -> str:
    """Return what the ranks said; `launch` raises where they would wait for each other."""
    script = tmp_path / "rank.py"
    script.write_text(_RANK)
    places = [f"--set={folder}", f"--out={tmp_path / 'out'}", f"--cache={tmp_path}"]
    settings = ["--arch=conv-tiny", "--batch=12", "--epochs=3", "--positive=synthetic"]
    result = launch(
        world,
        str(script),
        fatal,
        *places,
        *settings,
        f"--workers={workers}",
        "--log-every=1",
        check=False,
    )
    assert result.returncode != 0
    stderr: str = result.stderr
    return stderr


@pytest.mark.parametrize("harm", ["damaged", "missing"])
def test_harm_to_a_shard_is_the_same_error_on_all_ranks(
    digit_set: ShardSet, tmp_path: Path, launch, harm: str
) -> None:
    """Damage is met by a loader's process of one rank; what is missing, by both as they begin."""
    shutil.copytree(digit_set.folder, tmp_path / "set")
    path = tmp_path / "set" / "data" / "train-00001.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1  # inside the first image
    path.write_bytes(data)
    if harm == "missing":
        path.unlink()
    output = run(launch, 2, tmp_path, tmp_path / "set", fatal="none", workers=1)
    told = [line for line in output.splitlines() if line.startswith("Error: ")]
    assert len(told) == 2
    assert told[0] == told[1]
    words = {
        "damaged": "train-00001.tar, record digit-0007: anchor has sha256",
        "missing": "train-00001.tar is missing; the manifest names it",
    }
    assert words[harm] in told[0]
    assert "DataLoader worker" not in output


def test_a_killed_rank_is_named_by_all_others(digit_set: ShardSet, tmp_path: Path, launch) -> None:
    output = run(launch, 3, tmp_path, digit_set.folder, fatal="1")
    told = [line for line in output.splitlines() if line.startswith("Error: ")]
    assert told == ["Error: rank 1 was killed or its machine is gone: no sign of life"] * 2


def test_what_the_watch_waits_for_is_within_a_minute() -> None:
    """Its own waits, one after the other; how long a loaded machine takes beside is not its."""
    assert watch._SILENCE + 4 * watch._SUSPICION + 5 * watch._BEAT < 60
