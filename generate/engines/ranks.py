"""Run a plan's shards under `accelerate launch`, torchrun, or anything that sets RANK.

No rank waits for another: there is no process group, so a dead rank costs its unfinished shards
only, and a rerun with any number of ranks makes those.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from ..job import Job, Worker


def launched_ranks() -> tuple[int, int, int]:
    """Return (rank, world size, local rank) as the launcher set them; (0, 1, 0) without one."""
    rank, world, local = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
    )
    return rank, world, local


def share(shards: list[int]) -> list[int]:
    """Return this rank's share of `shards`: every world-size-th one, from the rank-th.

    The share is taken from the plan's shard numbers, so that ranks which start at different
    moments, and so see different shards done, still never make the same one.
    """
    rank, world, _ = launched_ranks()
    return [shard for shard in shards if shard % world == rank]


def run_here(
    job: Job, shards: list[int], device: str, progress: Callable[[int], None] = lambda anchors: None
) -> None:
    """Make `shards` in this process, leaving out those that fail three times."""
    if not shards:
        return
    worker = Worker(job, device)
    for shard in shards:
        worker.try_to_make(shard, progress)
