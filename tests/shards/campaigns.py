"""Randomised trials of readers: a few in the suite, a thousand in `python -m benchmarks.store`."""

from __future__ import annotations

import multiprocessing
import random
import time
from pathlib import Path

from clsp.shards.manifest import file_sha256
from clsp.shards.reader import ShardSet
from clsp.shards.store import open_set

from .faults import FaultServer


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


def kill_readers(shards: ShardSet, cache: Path, trials: int) -> dict[str, int]:
    """Kill a reader at a random moment, look at the cache, delete half of it; again and again.

    At the end an undisturbed reader reads all that is left and missing.
    """
    dice = random.Random(0)
    context = multiprocessing.get_context("fork")
    wrong = unfinished = 0
    slow = FaultServer(shards.folder, lambda name, _: "slow" if name.endswith(".tar") else None)
    with slow as server:
        places = (server.address, cache, 10**9)
        for trial in range(trials):
            reader = context.Process(target=read_all, args=(*places, trial))
            reader.start()
            time.sleep(dice.random() * 0.15)
            reader.kill()
            reader.join()
            unfinished += bool(list(cache.rglob("??/.*.part")))
            wrong += len(wrong_files(cache))
            for path in sorted(cache.rglob("??/*")):
                if dice.random() < 0.5 and not path.name.endswith(".part"):
                    path.unlink()
        read_all(*places, trials)
        wrong += len(wrong_files(cache))
    return {"kills": trials, "kills during a download": unfinished, "wrong files": wrong}
