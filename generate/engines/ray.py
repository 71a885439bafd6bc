"""Run a plan's shards in actors of a Ray cluster, whose nodes may come and go.

Ray restarts an actor that died, and its shard with it. Not Ray Data: there the order of the
output is never the same twice.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from ..job import Job, Worker
from ..marks import BEAT, JobError, busy

_POLL = 5.0  # seconds


def run_ray(
    job: Job,
    shards: list[int],
    device: str,
    workers: int | None,
    address: str | None,
    progress: Callable[[int], None] = lambda anchors: None,
) -> None:
    """Make `shards` in `workers` actors: by default one for each GPU of the cluster, else CPU.

    address: of a running cluster; None starts Ray on this machine and ends it afterwards.
    `progress` is called with the number of anchors when a shard is done. A shard that fails three
    times is left out. Raises ValueError without Ray, JobError when an actor cannot work at all.
    """
    try:
        import ray
    except ImportError as error:
        raise ValueError("--engine ray needs the extra ray: pip install 'clsp[ray]'") from error
    if not shards:
        return
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ours = not ray.is_initialized()
    if ours:
        # The address "local" never joins a cluster that happens to be there.
        ray.init(address=address or "local", include_dashboard=False, log_to_driver=False)
    try:
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0)) if device != "cpu" else 0
        if not gpus and device not in ("auto", "cpu"):
            raise ValueError(f"--device {device}: the Ray cluster has no GPU; use --device cpu")
        count = workers or gpus or int(resources.get("CPU", 1))
        # Ray shows an actor its own GPU only, so that one is always number 0.
        remote: Any = ray.remote(
            max_restarts=-1, max_task_retries=-1, num_cpus=1, num_gpus=1 if gpus else 0
        )(_Actor)
        actors = [
            remote.remote(job, "cuda:0" if gpus else "cpu") for _ in range(min(count, len(shards)))
        ]
        try:
            _spread(ray, job, actors, shards, progress)
        finally:
            for actor in actors:
                ray.kill(actor)
    except ray.exceptions.RayError as error:
        raise JobError(str(error)) from error
    finally:
        if ours:
            ray.shutdown()


def _spread(
    ray: Any, job: Job, actors: list[Any], shards: list[int], progress: Callable[[int], None]
) -> None:
    todo, left, idle = deque(shards), set(shards), list(actors)
    given: dict[Any, tuple[Any, int]] = {}  # the result to come -> who makes it, and which
    since: dict[int, float] = {}  # shard -> when it was last given to an actor
    while left:
        while todo and idle:
            actor, shard = idle.pop(), todo.popleft()
            given[actor.make.remote(shard)] = (actor, shard)
            since[shard] = time.monotonic()
        ready, _ = ray.wait(list(given), timeout=_POLL)
        for result in ready:
            actor, shard = given.pop(result)
            ray.get(result)
            idle.append(actor)
            if shard in left:
                left.remove(shard)
                progress(len(job.plan.anchors(shard)))
        if idle and left and not todo:
            # An actor whose node is gone, and that no other node has room for, keeps its shard.
            alive = busy(job.output)
            stale = time.monotonic() - 4 * BEAT
            todo.extend(s for s in sorted(left - alive) if since[s] < stale)


class _Actor:
    """One worker of the cluster: the model is loaded once, when it starts."""

    def __init__(self, job: Job, device: str) -> None:
        self._worker = Worker(job, device)

    def make(self, shard: int) -> bool:
        try:
            return self._worker.try_to_make(shard)
        except torch.AcceleratorError:
            os._exit(1)  # The GPU is lost to this process; Ray starts another one.
