"""Run a plan's shards in processes of this machine; a killed one is replaced."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

from ..job import Job, Worker

# A shard that takes its process down this often will do so again: out of memory, most likely.
_MOST_DEATHS = 5


class JobError(RuntimeError):
    """A shard could not be made; the message holds the worker's own words."""


def run_local(
    job: Job,
    shards: list[int],
    devices: list[str],
    progress: Callable[[int], None] = lambda anchors: None,
) -> None:
    """Make `shards`, one process for each entry of `devices` (an entry may come twice).

    `progress` is called with the number of anchors as they are done.
    Raises JobError on the first error a worker reports; shards done by then stay done.
    """
    todo, deaths = deque(shards), Counter[int]()
    workers = [_Process(job, device) for device in devices[: len(shards)]]
    busy: dict[_Process, int] = {}
    try:
        while todo or busy:
            for worker in workers:
                if worker not in busy and todo:
                    busy[worker] = todo.popleft()
                    worker.send(busy[worker])
            for worker in _ready(list(busy)):
                message = worker.receive()
                if message is None:
                    shard = busy.pop(worker)
                    deaths[shard] += 1
                    if deaths[shard] >= _MOST_DEATHS:
                        raise JobError(
                            f"shard {shard} killed its process {deaths[shard]} times "
                            f"(last exit code {worker.process.exitcode}); is memory short?"
                        )
                    todo.appendleft(shard)
                    workers[workers.index(worker)] = _Process(job, worker.device)
                elif message[0] == "anchors":
                    progress(message[1])
                elif message[0] == "done":
                    del busy[worker]
                else:
                    raise JobError(f"shard {busy[worker]}: {message[1]}")
    finally:
        for worker in workers:
            worker.stop()


def _ready(workers: list[_Process]) -> list[_Process]:
    """Wait until some workers have a message or are dead; return those."""
    fired = wait([w.connection for w in workers] + [w.process.sentinel for w in workers])
    return [w for w in workers if w.connection in fired or w.process.sentinel in fired]


class _Process:
    def __init__(self, job: Job, device: str) -> None:
        # Not a fork of this process: neither CUDA nor torch's thread pools survive that. The fork
        # server imports torch once and computes nothing, so a replaced worker starts at once.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([Worker.__module__])
        self.device = device
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, job, device), daemon=True)
        self.process.start()
        theirs.close()  # so that the pipe ends when the worker does

    def send(self, shard: int) -> None:
        with contextlib.suppress(OSError):  # Dead already: `receive` will say so.
            self.connection.send(shard)

    def receive(self) -> tuple[str, Any] | None:
        """Return the worker's next message; None when it died."""
        try:
            message: tuple[str, Any] = self.connection.recv()
            return message
        except (EOFError, OSError):
            self.process.join()
            return None

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()
        self.connection.close()


def _serve(connection: Connection, job: Job, device: str) -> None:
    """The worker process: make each shard number that comes through the pipe."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        worker = Worker(job, device)
        while True:
            shard = connection.recv()
            worker.make(shard, lambda anchors: connection.send(("anchors", anchors)))
            connection.send(("done", shard))
    except EOFError:
        return
    except Exception as error:
        known = isinstance(error, (OSError, ValueError))
        connection.send(("error", str(error) if known else traceback.format_exc()))


def _die_with_parent() -> None:
    # A worker that outlived its job would write beside the rerun's workers.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
