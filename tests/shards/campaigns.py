"""Randomised trials of readers: a few in the suite, a thousand in `python -m benchmarks.store`."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from clsp.shards.check import ShardError
from clsp.shards.manifest import file_sha256
from clsp.shards.reader import ShardSet
from clsp.shards.share import pull
from clsp.shards.store import open_set

from .faults import PERMANENT, TRANSIENT, FaultServer

_ALWAYS = 10**6


def wrong_files(cache: Path) -> list[Path]:
    """Return the finished files of a cache whose bytes are not those of their name."""
    finished = [p for p in cache.rglob("??/*") if p.is_file() and not p.name.startswith(".")]
    return [path for path in finished if file_sha256(path) != path.name]


def read_all(address: str, cache: Path, limit: int, seed: int) -> None:
    """Read every record of a set of digits through a cache, in an order of the seed's."""
    remote = open_set(address, cache=cache, cache_limit=limit)
    order = list(range(len(remote)))
    random.Random(seed).shuffle(order)
    for number in order:
        assert remote.record(number).key == f"digit-{number:04d}"


def _unfinished(cache: Path) -> set[tuple[Path, int]]:
    """Return the unfinished downloads of a cache, each with the time it was last written."""
    found = set()
    for path in cache.rglob("??/.*.part"):
        with suppress(FileNotFoundError):  # it was finished meanwhile
            found.add((path, path.stat().st_mtime_ns))
    return found


def kill_readers(shards: ShardSet, cache: Path, trials: int) -> dict[str, int]:
    """Kill a reader soon after it began to fetch, look at the cache, delete half of it; again.

    At the end an undisturbed reader reads all that is left and missing.
    """
    dice = random.Random(0)
    context = multiprocessing.get_context("fork")
    wrong = unfinished = 0
    # Slow, so that most kills strike while bytes come.
    slow = FaultServer(shards.folder, lambda name, _: "slow" if name.startswith("data/") else None)
    with slow as server:
        places = (server.address, cache, 10**9)
        for trial in range(trials):
            before = _unfinished(cache)
            reader = context.Process(target=read_all, args=(*places, trial))
            reader.start()
            while reader.is_alive() and not _unfinished(cache) - before:
                time.sleep(0.001)
            time.sleep(dice.random() * 0.02)
            reader.kill()
            reader.join()
            unfinished += bool(_unfinished(cache) - before)
            wrong += len(wrong_files(cache))
            for path in sorted(cache.rglob("??/*")):
                if dice.random() < 0.5 and not path.name.endswith(".part"):
                    path.unlink()
        read_all(*places, trials)
        wrong += len(wrong_files(cache))
    return {"kills": trials, "kills during a download": unfinished, "wrong files": wrong}


def break_pulls(shards: ShardSet, older: Path, folder: Path, trials: int) -> dict[str, int]:
    """Pull a set from a server that breaks its answers for one file, once, a few times or always.

    older: a set of the same names with other bytes, which a stale answer comes from. Counts pulls
    by how they ended; "silent" are those that ended well with wrong or missing bytes, or with an
    error and yet a manifest, and "given up" those that should have come through.
    """
    dice, counts = random.Random(0), Counter(trials=trials, silent=0, given_up=0)
    names = [path.relative_to(shards.folder).as_posix() for path in shards.folder.rglob("*.*")]
    names.append("SHA256SUMS")
    expected = {name: (shards.folder / name).read_bytes() for name in names}
    for trial in range(trials):
        fault = (*TRANSIENT, *PERMANENT)[trial % len((*TRANSIENT, *PERMANENT))]
        name, times = dice.choice(names), dice.choice((1, 2, 4, _ALWAYS))

        def choose(
            asked: str, count: int, fault: str = fault, name: str = name, times: int = times
        ) -> str | None:
            if asked != name or count > times:
                return None
            # A range is asked for when the beginning is here already.
            return "cut, length" if fault.startswith("range") and count == 1 else fault

        here = folder / str(trial)
        with FaultServer(shards.folder, choose, older, stall=1.0, seed=trial) as server:
            try:
                pull(server.address, here)
                counts["came through"] += 1
                wrong = any((here / name).read_bytes() != data for name, data in expected.items())
                counts["silent"] += wrong
            except ShardError:
                counts["refused"] += 1
                counts["silent"] += (here / "manifest.json").exists()
                counts["given_up"] += fault in TRANSIENT and times < _ALWAYS
            counts["requests repeated"] += server.requests[name] - 1
        shutil.rmtree(here, ignore_errors=True)
    return dict(counts)
