"""All ranks stop together and say the same, whichever of them failed, and however.

A rank that raises leaves the others waiting inside a collective, where they find out after many
minutes or by an error about sockets; one that is killed says nothing at all. So every rank has a
thread that each second leaves a sign of life in the store by which the ranks found each other, and
looks for two things there: a failure that a rank announced, and a rank whose signs have stopped.
Nothing is added to a step.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click
import torch
import torch.distributed as dist

_BEAT = 1.0  # seconds between signs of life
_SILENCE = 20.0  # without a sign: the rank is gone
_SUSPICION = 5.0  # the same, once a collective broke or the launcher sent SIGTERM
_FAILED = "clsp/failed"


class RankError(ValueError):
    """What stopped all ranks: the message names the rank that failed."""


@contextmanager
def watch_ranks() -> Iterator[None]:
    """Raise on every rank the error of the one that raised, or RankError for one that vanished.

    Does nothing where there is one rank. A rank that cannot raise, because it waits inside a
    collective, prints the error and exits with 1.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        yield
        return
    watch = _Watch(dist.distributed_c10d._get_default_store().clone())
    try:
        yield
    except Exception as error:
        raise watch.fail(error) from error
    finally:
        watch.close()


class _Watch:
    def __init__(self, store: Any) -> None:
        self.store, self.rank, self.world = store, dist.get_rank(), dist.get_world_size()
        self.closed, self.suspected, self.terminated = threading.Event(), float("inf"), False
        self._beat = 0
        self._sign()
        dist.barrier()  # every rank has left a first sign
        self._wake, self._written = os.pipe()
        if threading.current_thread() is threading.main_thread():
            # A handler in Python would wait for the main thread, and that for a dead rank.
            os.set_blocking(self._written, False)
            self._wakeup = signal.set_wakeup_fd(self._written, warn_on_full_buffer=False)
            self._handler = signal.signal(signal.SIGTERM, lambda *_: None)
        self.thread = threading.Thread(target=self._run, name="clsp-watch", daemon=True)
        self.thread.start()

    def fail(self, error: Exception) -> Exception:
        """Announce this rank's error; return the one to raise, which is the first announced."""
        if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError):
            # Most likely a collective that broke because another rank is gone: the thread then ends
            # this process within the time it takes to be sure.
            self.suspected = time.monotonic()
            time.sleep(2 * _SUSPICION)
        self.closed.set()  # from here on it is this thread that speaks
        message = self._announce(f"rank {self.rank}: {error}")
        for _ in range(50):  # the launcher ends the others as soon as one has ended
            if self.store.check([f"clsp/told/{rank}" for rank in range(self.world)]):
                break
            time.sleep(0.1)
        return RankError(message)

    def close(self) -> None:
        """Leave the others without alarm."""
        with suppress(RuntimeError):  # the store may have gone with rank 0
            self.store.set(f"clsp/beat/{self.rank}", "done")
        self.closed.set()
        self.thread.join()
        if hasattr(self, "_handler"):
            signal.set_wakeup_fd(self._wakeup)
            signal.signal(signal.SIGTERM, self._handler)
        os.close(self._wake)
        os.close(self._written)

    def _sign(self) -> None:
        self._beat += 1
        self.store.set(f"clsp/beat/{self.rank}", str(self._beat))

    def _announce(self, message: str) -> str:
        first: bytes = self.store.compare_set(_FAILED, "", message)
        self.store.set(f"clsp/told/{self.rank}", "")
        return first.decode()

    def _run(self) -> None:
        seen = [(b"", time.monotonic())] * self.world  # each rank's last sign, and when it came
        while not self.closed.is_set():
            try:
                self._look(seen)
            except (RuntimeError, OSError):  # torch's errors of a store are RuntimeErrors
                time.sleep(2 * _BEAT)
                if not self.closed.is_set():
                    self._exit("the store of the ranks does not answer: its machine is gone")

    def _look(self, seen: list[tuple[bytes, float]]) -> None:
        """Sign, look around once, and wait for the next beat."""
        self._sign()
        now = time.monotonic()
        signs = self.store.multi_get([f"clsp/beat/{rank}" for rank in range(self.world)])
        for rank, sign in enumerate(signs):
            if sign != seen[rank][0]:
                seen[rank] = (sign, now)
        patience = _SUSPICION if now >= self.suspected else _SILENCE
        silent = [rank for rank, (sign, at) in enumerate(seen) if now - at > patience]
        gone = [rank for rank in silent if seen[rank][0] != b"done"]
        if gone:
            self._announce(f"rank {gone[0]} was killed or its machine is gone: no sign of life")
        if self.store.check([_FAILED]) and not self.closed.is_set():
            self.store.set(f"clsp/told/{self.rank}", "")
            self._exit(self.store.get(_FAILED).decode())
        if self.terminated and now - self.suspected > 2 * _SUSPICION:
            os._exit(128 + signal.SIGTERM)  # nobody failed: the whole job was told to end
        if select.select([self._wake], [], [], _BEAT)[0]:
            os.read(self._wake, 64)
            self.terminated = True
            self.suspected = min(self.suspected, time.monotonic())

    def _exit(self, message: str) -> None:
        click.echo(f"Error: {message}", err=True)
        os._exit(1)
