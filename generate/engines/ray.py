"""Run a plan's shards in actors of a Ray cluster, whose nodes may come and go.

Ray restarts an actor that died, and its shard with it. Not Ray Data: there the order of the
output is never the same twice.
"""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

import torch

from ..job import Job, Worker
from ..marks import ALIVE, JobError, at_work, quarantine

_POLL = 5.0  # seconds between two looks at the workers' marks
# So many processes may die at one shard before it is left out. More than on one machine: nodes that
# are taken away count too.
_MOST_DEATHS = 20
_PATIENCE = 1800.0  # seconds without a sign of life of any actor, after which the run ends


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
    times, or takes its process down twenty times, is left out.
    Raises ValueError without Ray, JobError when an actor cannot work at all, or none has shown a
    sign of life for half an hour.
    """
    try:
        import ray
    except ImportError as error:
        raise ValueError("--engine ray needs the extra ray: pip install 'clsp[ray]'") from error
    if not shards:
        return
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Else a Ray that starts waits for ever for workers of its own that were killed while they start
    # (ray-project/ray issue 40131).
    os.environ["RAY_prestart_worker_first_driver"] = "0"  # noqa: SIM112 - its name
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
        actors: list[Any] = []

        def hire() -> Any:
            actors.append(remote.remote(job, "cuda:0" if gpus else "cpu"))
            return actors[-1]

        try:
            _spread(ray, job, hire, min(count, len(shards)), shards, progress)
        finally:
            for actor in actors:
                ray.kill(actor)
    except ray.exceptions.RayError as error:
        raise JobError(str(error)) from error
    finally:
        if ours:
            ray.shutdown()


def _spread(
    ray: Any,
    job: Job,
    hire: Callable[[], Any],
    count: int,
    shards: list[int],
    progress: Callable[[int], None],
) -> None:
    todo, idle = deque(shards), [hire() for _ in range(count)]
    given: dict[Any, tuple[Any, int]] = {}  # the result to come -> who makes it, and which
    left = dict.fromkeys(shards, math.inf)  # shard that is not done -> when it was last given
    seen: dict[int, set[bytes]] = defaultdict(set)  # shard -> the processes that were at it
    heard = looked = time.monotonic()
    while left:
        while todo and idle:
            shard = todo.popleft()
            if shard in left:
                actor = idle.pop()
                given[actor.make.remote(shard)] = (actor, shard)
                left[shard] = time.monotonic()
        ready, _ = ray.wait(list(given), timeout=_POLL)
        now = time.monotonic()
        for result in ready:
            actor, shard = given.pop(result)
            try:
                ray.get(result)
            except ray.exceptions.ActorDiedError as error:
                if error.actor_init_failed:
                    raise  # Another one would say the same.
                # Killed for good, as by an operator.
                idle.append(hire())
                todo.append(shard)
                continue
            idle.append(actor)
            heard = now
            if left.pop(shard, None) is not None:
                progress(len(job.plan.anchors(shard)))
        if now - looked < _POLL:
            continue
        looked = now
        alive = at_work(job.output)
        for shard, process in alive.items():
            seen[shard].add(process)
        if alive.keys() & {shard for _, shard in given.values()}:
            heard = now
        elif now - heard > _PATIENCE:
            raise JobError(
                f"no Ray actor has shown a sign of life for {_PATIENCE / 60:.0f} minutes; has the "
                "cluster room for one (`ray status`), or do its workers die while they start?"
            )
        for result, (actor, shard) in list(given.items()):
            if len(seen[shard]) > _MOST_DEATHS:
                if left.pop(shard, None) is not None:
                    why = "is memory short, or its GPU broken?"
                    quarantine(job.output, shard, f"its process died {_MOST_DEATHS} times; {why}")
                del given[result]
                ray.kill(actor)
                idle.append(hire())
        if idle and not todo:
            # An actor whose node is gone, and that no other node has room for, keeps its shard.
            todo.extend(s for s, when in left.items() if s not in alive and now - when > ALIVE)


class _Actor:
    """One worker of the cluster: the model is loaded once, when it starts."""

    def __init__(self, job: Job, device: str) -> None:
        self._worker = Worker(job, device)

    def make(self, shard: int) -> bool:
        try:
            return self._worker.try_to_make(shard)
        except torch.AcceleratorError:
            os._exit(1)  # The GPU is lost to this process; Ray starts another one.
