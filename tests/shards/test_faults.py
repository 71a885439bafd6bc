"""Every way in which a server breaks an answer is an error or is mended; none is silent."""

from __future__ import annotations

from pathlib import Path

import pytest

from clsp.shards import download, remote
from clsp.shards.check import ShardError
from clsp.shards.reader import ShardSet
from clsp.shards.share import pull
from clsp.shards.store import open_set

from .campaigns import break_pulls
from .faults import PERMANENT, TRANSIENT, FaultServer

TRIALS = 3 * len((*TRANSIENT, *PERMANENT))  # of the long form's 1,000: python -m benchmarks.store


@pytest.fixture(scope="module")
def sets(make_set, tmp_path_factory: pytest.TempPathFactory) -> tuple[ShardSet, ShardSet]:
    """Two sets whose files have the same names and other bytes."""
    folder = tmp_path_factory.mktemp("faults")
    return tuple(make_set(folder / str(k), sizes=(3, 4), positives=k) for k in (2, 1))


@pytest.fixture(autouse=True)
def _impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(remote, "TIMEOUT", 0.5)


def test_no_fault_is_silent(sets: tuple[ShardSet, ShardSet], tmp_path: Path) -> None:
    shards, older = sets
    found = break_pulls(shards, older.folder, tmp_path, TRIALS)
    assert (found["silent"], found["given_up"]) == (0, 0)
    assert min(found["came through"], found["refused"], found["requests repeated"]) > 10


@pytest.mark.parametrize(
    ("fault", "name", "message"),
    [
        ("404", "manifest.json", "manifest.json: the server answers 404"),
        ("403", "data/train-00001.tar", "train-00001.tar: the server answers 403"),
        ("503", "data/train-00001.tar", r"answers 503 .* \(given up after 6 tries\)"),
        ("html", "manifest.json", r"manifest.json: Expecting value.*\(given up after 6 tries\)"),
        ("html", "data/train-00001.tar", "train-00001.tar: the bytes that came are not those with"),
        ("stale", "data/train-00001.idx", "train-00001.idx: the bytes that came are not those"),
        ("stale", "manifest.json", "the sha256 of manifest.json is"),
        ("cut, close", "SHA256SUMS", "manifest.json: the sha256 of .* is"),
        ("stalled", "data/train-00000.tar", "the connection broke: .*timed out"),
    ],
)
def test_a_fault_that_stays_is_named(
    sets: tuple[ShardSet, ShardSet], tmp_path: Path, fault: str, name: str, message: str
) -> None:
    shards, older = sets
    always = FaultServer(
        shards.folder, lambda asked, _: fault if asked == name else None, older.folder, stall=1.0
    )
    with always as server, pytest.raises(ShardError, match=message) as error:
        pull(server.address, tmp_path / "here")
    assert server.address in str(error.value)
    assert not (tmp_path / "here" / "manifest.json").exists()


def test_a_server_that_is_gone_is_an_error(sets: tuple[ShardSet, ShardSet], tmp_path: Path) -> None:
    with FaultServer(sets[0].folder) as server:
        remote_set = open_set(server.address, cache=tmp_path)
    with pytest.raises(ShardError, match=r"Connection refused.*\(given up after 6 tries\)"):
        remote_set.record(0)
