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

import torch

from ..job import Job, Worker
from ..marks import JobError, quarantine

# A shard, or a start, that takes its process down this often will do so again: out of memory, most
# likely.
_MOST_DEATHS = 5


def run_local(
    job: Job,
    shards: list[int],
    devices: list[str],
    progress: Callable[[int], None] = lambda anchors: None,
) -> None:
    """Make `shards`, one process for each entry of `devices` (an entry may come twice).

    `progress` is called with the number of anchors as they are done. A shard that fails three
    times, or takes its process down five times, is left out.
    Raises JobError when no shard could be made: images or model do not open, the disk is full.
    """
    todo, deaths = deque(shards), Counter[int]()
    workers = [_Process(job, device) for device in devices[: len(shards)]]
    failed_starts = 0
    try:
        while todo or any(worker.shard is not None for worker in workers):
            for worker in workers:
                if worker.ready and worker.shard is None and todo:
                    worker.make(todo.popleft())
            for worker in _fired(workers):
                message = worker.receive()
                if message is None:
                    workers[workers.index(worker)] = _Process(job, worker.device)
                    progress(-worker.anchors)
                    if worker.shard is not None:
                        deaths[worker.shard] += 1
                        if deaths[worker.shard] < _MOST_DEATHS:
                            todo.appendleft(worker.shard)
                        else:
                            quarantine(job.output, worker.shard, _death(worker, _MOST_DEATHS))
                    elif not worker.ready:
                        failed_starts += 1
                        if failed_starts == _MOST_DEATHS:
                            raise JobError(f"a worker that starts: {_death(worker, failed_starts)}")
                elif message[0] == "error":
                    raise JobError(message[1])
                elif message[0] == "anchors":
                    worker.anchors += message[1]
                    progress(message[1])
                else:
                    failed_starts = 0
                    worker.ready, worker.shard, worker.anchors = True, None, 0
    finally:
        for worker in workers:
            worker.stop()


def _death(worker: _Process, times: int) -> str:
    code = worker.process.exitcode
    return f"its process died {times} times (last exit code {code}); is memory short?"


def _fired(workers: list[_Process]) -> list[_Process]:
    """Wait until some workers have a message or are dead; return those."""
    fired = wait([w.connection for w in workers] + [w.process.sentinel for w in workers])
    return [w for w in workers if w.connection in fired or w.process.sentinel in fired]


class _Process:
    """A worker process as its parent sees it.

    ready: it has opened images and model; shard: what it makes, or None; anchors: done of that.
    """

    def __init__(self, job: Job, device: str) -> None:
        # Not a fork of this process: neither CUDA nor torch's thread pools survive that. The fork
        # server imports torch once and computes nothing, so a replaced worker starts at once.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([Worker.__module__])
        self.device, self.ready, self.anchors = device, False, 0
        self.shard: int | None = None
        self.connection, theirs = context.Pipe()
        # The server keeps the environment it was started with; credentials may be newer.
        arguments = (theirs, job, device, dict(os.environ))
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()  # so that the pipe ends when the worker does

    def make(self, shard: int) -> None:
        self.shard = shard
        with contextlib.suppress(OSError):  # Dead already: `receive` will say so.
            self.connection.send(shard)

    def receive(self) -> tuple[str, Any] | None:
        """Return the worker's next message; None when it died."""
        with contextlib.suppress(EOFError, OSError):
            # What it said before it died comes first. Only its end may have been signalled, and
            # the fork server's end looks like it: then there is nothing to wait for.
            if self.connection.poll():
                message: tuple[str, Any] = self.connection.recv()
                return message
        self.stop()
        return None

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _serve(connection: Connection, job: Job, device: str, environment: dict[str, str]) -> None:
    """The worker process: make each shard number that comes through the pipe."""
    os.environ.update(environment)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        worker = Worker(job, device)
        connection.send(("ready", None))
        while True:
            shard = connection.recv()
            worker.try_to_make(shard, lambda anchors: connection.send(("anchors", anchors)))
            connection.send(("done", None))
    except (EOFError, BrokenPipeError):
        return
    except torch.AcceleratorError:
        raise  # The GPU is lost to this process; its death has the shard made by a new one.
    except Exception as error:
        known = isinstance(error, (OSError, ValueError))
        connection.send(("error", str(error) if known else traceback.format_exc()))


def _die_with_parent() -> None:
    # A worker that outlived its job would write beside the rerun's workers.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
