"""Sets that are read from afar: fetched shard by shard, kept by hash, never a wrong byte."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from clsp.shards import download
from clsp.shards.cache import Cache, Prefetch, shards_ahead
from clsp.shards.check import ShardError
from clsp.shards.download import partial_name
from clsp.shards.reader import ShardSet
from clsp.shards.remote import FolderSource
from clsp.shards.store import open_set
from clsp.train.tuples import TupleBatches, decoded_set, load_tuples

from .campaigns import kill_readers, read_all, wrong_files
from .faults import FaultServer

KILLS = 24  # of the long form's 1,000: python -m benchmarks.store


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "FIRST_PAUSE", 0.001)


@pytest.fixture(scope="module")
def shards(make_set, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Five shards of 6 records."""
    return make_set(tmp_path_factory.mktemp("remote") / "set", sizes=[6] * 5)


def test_records_come_from_afar_shard_by_shard(shards: ShardSet, tmp_path: Path) -> None:
    with FaultServer(shards.folder) as server:
        remote = open_set(server.address, cache=tmp_path)
        assert (remote.id, remote.address, remote.is_remote) == (shards.id, server.address, True)
        assert set(server.requests) == {"manifest.json", "SHA256SUMS"}
        assert remote.record(7) == shards.record(7)
        assert set(server.requests) - {"manifest.json", "SHA256SUMS"} == {
            "data/train-00001.tar",
            "data/train-00001.idx",
        }
        remote.verify(deep=True)
        assert set(server.requests.values()) == {1}
    # The server is gone: what is here is here, for any process.
    again = ShardSet(Cache(tmp_path / "shards", FolderSource(Path("gone"))), shards.manifest)
    assert [again.record(n) for n in range(30)] == [shards.record(n) for n in range(30)]
    with pytest.raises(ShardError, match="is not on this machine"):
        _ = again.folder


def test_the_first_batch_needs_one_shard(shards: ShardSet, tmp_path: Path) -> None:
    fetched = []
    with FaultServer(shards.folder, lambda name, count: fetched.append(name)) as server:
        remote = open_set(server.address, cache=tmp_path)
        assert decoded_set(remote, tmp_path) is None
        batches = TupleBatches(remote, 6, seed=0, positives=1)
        local = TupleBatches(shards, 6, seed=0, positives=1)
        remote.prefetch = lambda order: None  # type: ignore[method-assign]
        first = batches[0]
        assert {Path(name).stem for name in fetched[2:]} == {Path(fetched[2]).stem}
        assert bool((first.anchor == local[0].anchor).all())


def test_training_reads_the_same_batches_from_afar(shards: ShardSet, tmp_path: Path) -> None:
    with FaultServer(shards.folder) as server:
        remote = TupleBatches(open_set(server.address, cache=tmp_path), 5, 0, positives=1)
        local = TupleBatches(shards, 5, seed=0, positives=1)
        for item in load_tuples(remote, 0, 12, workers=2):
            expected = local[item.step]
            assert bool((item.anchor == expected.anchor).all())
            assert bool((item.positives == expected.positives).all())
        tars = {name: n for name, n in server.requests.items() if name.endswith(".tar")}
        assert set(tars.values()) == {1}  # two workers, and their prefetching, ask once


def test_shards_are_fetched_ahead_and_in_order() -> None:
    fetched: list[int] = []
    prefetch = Prefetch(fetched.append, [3, 1, 4, 0, 2], ahead=2)

    def settled() -> list[int]:
        time.sleep(0.05)
        return list(fetched)

    assert settled() == [3, 1]
    prefetch.opened(1)
    assert settled() == [3, 1, 4, 0]
    prefetch.opened(3)
    assert settled() == [3, 1, 4, 0]
    prefetch.stop()
    prefetch.opened(2)
    assert settled() == [3, 1, 4, 0]
    assert (shards_ahead(10, 10**6), shards_ahead(10, 120), shards_ahead(10, 20)) == (8, 3, 1)


def test_the_same_name_from_two_sources_is_two_files(make_set, tmp_path: Path) -> None:
    sets = [make_set(tmp_path / str(k), sizes=(4,), positives=k) for k in (1, 2)]
    assert len({shards.manifest.shards[0].name for shards in sets}) == 1
    for shards in sets * 2:
        with FaultServer(shards.folder) as server:
            remote = open_set(server.address, cache=tmp_path / "cache")
            assert [remote.record(n) for n in range(4)] == [shards.record(n) for n in range(4)]
    assert not wrong_files(tmp_path / "cache")


@pytest.mark.parametrize("room", [2, 100])
def test_eight_processes_share_a_cache(shards: ShardSet, tmp_path: Path, room: int) -> None:
    """room: shards that the cache may hold; with 2 they delete what others are about to open."""
    limit = room * max(shard.bytes for shard in shards.manifest.shards)
    context = multiprocessing.get_context("fork")
    with FaultServer(shards.folder) as server:
        places = (server.address, tmp_path, limit)
        readers = [context.Process(target=read_all, args=(*places, n)) for n in range(8)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        assert [reader.exitcode for reader in readers] == [0] * 8
        if room == 100:
            tars = {name: n for name, n in server.requests.items() if name.endswith("tar")}
            assert set(tars.values()) == {1}
    files = [path for path in tmp_path.rglob("??/*") if path.is_file()]
    assert files
    assert not wrong_files(tmp_path)
    assert sum(path.stat().st_size for path in files) <= limit


def test_the_least_recently_used_goes_first(shards: ShardSet, tmp_path: Path) -> None:
    files = shards.manifest.shards
    cache = Cache(tmp_path, FolderSource(shards.folder), sum(f.bytes for f in files[:3]) + 100)
    for number, shard in enumerate(files[:3]):
        cache.get(shard.name, shard.sha256, shard.bytes)
        os.utime(cache.path(shard.sha256), (number, number))
    cache.get(files[0].name, files[0].sha256, files[0].bytes)  # used again, so no longer the oldest
    cache.get(files[3].name, files[3].sha256, files[3].bytes)
    assert [cache.path(shard.sha256).exists() for shard in files[:4]] == [True, False, True, True]
    with pytest.raises(ShardError, match="the cache may take 10"):
        Cache(tmp_path / "small", FolderSource(shards.folder), 10).get(
            files[0].name, files[0].sha256, files[0].bytes
        )


def test_a_file_of_another_size_is_fetched_again(shards: ShardSet, tmp_path: Path) -> None:
    cache, shard = Cache(tmp_path, FolderSource(shards.folder)), shards.manifest.shards[0]
    path = cache.path(shard.sha256)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half")
    assert cache.get(shard.name, shard.sha256, shard.bytes) == path
    assert not wrong_files(tmp_path)


def test_no_kill_leaves_a_wrong_byte(shards: ShardSet, tmp_path: Path) -> None:
    """Killed anywhere during its download, a reader leaves files that are whole, or hidden."""
    found = kill_readers(shards, tmp_path, KILLS)
    assert found["wrong files"] == 0
    assert found["kills during a download"] > KILLS // 8
    assert not list(tmp_path.rglob("*.part"))


def test_what_a_killed_reader_left_is_used(shards: ShardSet, tmp_path: Path) -> None:
    shard = shards.manifest.shards[0]
    data = (shards.folder / shard.name).read_bytes()
    with FaultServer(shards.folder) as server:
        cache = open_set(server.address, cache=tmp_path).place
        assert isinstance(cache, Cache)
        partial = partial_name(cache.path(shard.sha256))
        for left in (data[:5000], data, data[:100] + b"other" + data[105:4000], data + b"more"):
            partial.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(left)
            path = cache.get(shard.name, shard.sha256, shard.bytes)
            assert path is not None
            assert path.read_bytes() == data
            path.unlink()
        assert server.requests[shard.name] == 1 + 0 + 2 + 1
