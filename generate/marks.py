"""What workers leave in an output while they are at it: who is busy with what, and what failed.

A finished set holds none of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from .output import Output

BEAT = 30.0  # seconds between two signs of life of a busy worker
ALIVE = 4 * BEAT  # without one for so long, it counts as dead


class JobError(RuntimeError):
    """The run cannot go on; the message holds the worker's own words."""


class QuarantineError(RuntimeError):
    """Some shards failed again and again and were left out; the message names them."""


@dataclass(frozen=True)
class Failure:
    """Why a shard was left out: the last error in one line, and where it came from."""

    shard: int
    error: str
    traceback: str


@contextmanager
def running(output: Output, shard: int) -> Iterator[None]:
    """Show in `output` that this process makes `shard`: a mark, renewed every `BEAT` seconds."""
    name = f"running/train-{shard:05d}.json"
    mark = json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode()
    done = threading.Event()

    def beat() -> None:
        while not done.wait(BEAT):
            _try_write(output, name, mark)

    _try_write(output, name, mark)
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        with contextlib.suppress(Exception):
            output.remove(name)


def busy(output: Output, now: float | None = None) -> set[int]:
    """Return the shards whose makers have shown a sign of life lately.

    now: seconds since 1970, compared with the times of the output's files.
    """
    now = time.time() if now is None else now
    marks = output.entries("running").items()
    return {shard_number(name) for name, entry in marks if now - entry.modified < ALIVE}


def at_work(output: Output) -> dict[int, bytes]:
    """Return the shards that are `busy`, and of each the mark that says which process is at it."""
    alive, marks = busy(output), output.read_all("running")
    return {number: mark for name, mark in marks.items() if (number := shard_number(name)) in alive}


def shard_number(name: str) -> int:
    """Return N of a file name `train-N.json`."""
    return int(name.removeprefix("train-").partition(".")[0])


def _try_write(output: Output, name: str, data: bytes) -> None:
    # A mark is a courtesy: the shard's own files will say what is wrong with the disk.
    with contextlib.suppress(Exception):
        output.write(name, data)


def quarantine(output: Output, shard: int, error: BaseException | str) -> None:
    """Keep in `output` why `shard` was left out."""
    if isinstance(error, str):
        failure = Failure(shard, error, "")
    else:
        trace = "".join(traceback.format_exception(error))
        failure = Failure(shard, f"{type(error).__name__}: {error}", trace)
    output.write(_failure_name(shard), json.dumps(asdict(failure), indent=2).encode())


def forgive(output: Output, shards: Iterable[int]) -> None:
    """Forget the failures of `shards`, which are about to be tried again."""
    for shard in set(shards) & set(failures(output)):
        output.remove(_failure_name(shard))


def failures(output: Output) -> dict[int, Failure]:
    """Return the shards that were left out and why, by shard number."""
    found = (Failure(**json.loads(data)) for data in output.read_all("failures").values())
    return {failure.shard: failure for failure in sorted(found, key=lambda f: f.shard)}


def report(output: Output, failed: Iterable[Failure]) -> str:
    """Return the last lines of a run that left shards out."""
    lines = [
        f"shard {f.shard}: {f.error}; more in {output}/{_failure_name(f.shard)}" for f in failed
    ]
    return "\n  ".join(
        [f"{len(lines)} of the shards failed and were left out; a rerun tries them again", *lines]
    )


def _failure_name(shard: int) -> str:
    return f"failures/train-{shard:05d}.json"
