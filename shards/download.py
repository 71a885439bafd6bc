"""A file of a source -> the same file here: whole and proven, or not there. It resumes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from .check import ShardError
from .files import fsync_folder
from .remote import PIECE, Interrupted, Source

TRIES = 6  # in a row without progress, before a source is given up
FIRST_PAUSE = 0.5  # seconds; each further pause is twice as long
_PROGRESS = 1 << 20  # bytes that make a broken try a new beginning

Value = TypeVar("Value")


def download(
    source: Source,
    name: str,
    path: Path,
    sha256: str,
    size: int,
    *,
    exact: bool = True,
    wait: bool = True,
) -> bool:
    """Fetch a file of `source` to `path`; True when it is there, whole and with this sha256.

    The bytes go to a hidden file beside `path`, which another process or a later call continues,
    and which gets its name when it is complete, hashed and on disk. Many processes may ask for
    the same file: one fetches it, the others wait, or return False at once unless `wait`.
    size: bytes the file has or, if not `exact`, can have at most.
    Raises ShardError when the source has no such file, has other bytes, or breaks off again and
    again; OSError when the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone_with(partial_name(path), wait) as file:
        if file is None:
            return path.exists()
        if path.exists():  # another process was faster
            os.unlink(partial_name(path))
            return True
        _fill(source, name, file, sha256, size, exact)
        file.flush()
        os.fsync(file.fileno())
        os.replace(partial_name(path), path)
    fsync_folder(path.parent)
    return True


def partial_name(path: Path) -> Path:
    """Return where an unfinished download of `path` lies."""
    return path.with_name(f".{path.name}.part")


def _fill(source: Source, name: str, file: BinaryIO, sha256: str, size: int, exact: bool) -> None:
    """Append to `file` what it lacks, until it has this sha256."""
    digest, position = hashlib.sha256(), 0
    file.seek(0)
    while piece := file.read(PIECE):
        digest.update(piece)
        position += len(piece)
    if position >= size and digest.hexdigest() != sha256:
        digest, position = _empty(file)
    failures, reached = 0, position
    while digest.hexdigest() != sha256:
        problem = f"{name}: the bytes that came are not those with sha256 {sha256}"
        interrupted = False
        try:
            reply = source.open(name, position)
            if reply.start != position:
                digest, position = _empty(file)
            for piece in reply.pieces:
                position += len(piece)
                if position > size:
                    break
                file.write(piece)
                digest.update(piece)
            else:
                interrupted = exact and position < size
        except Interrupted as error:
            problem, interrupted = str(error), True
        if digest.hexdigest() == sha256 and position <= size:
            return
        if interrupted:
            failures = 0 if position - reached >= _PROGRESS else failures
            reached = max(reached, position)
        else:  # A whole file, but another one; what was kept of it is of no use.
            digest, position = _empty(file)
            reached = size
        failures += 1
        _pause(failures, source, problem)


def _empty(file: BinaryIO) -> tuple[Any, int]:
    file.truncate(0)
    return hashlib.sha256(), 0


def fetch(source: Source, name: str, parse: Callable[[bytes], Value], *, most: int) -> Value:
    """Return what `parse` makes of a small file of `source`.

    A ValueError of `parse` counts as bytes that did not all come, and is tried again too.
    Raises ShardError as `download` does.
    """
    failures = 0
    while True:
        try:
            data = b""
            for piece in source.open(name).pieces:
                data += piece
                if len(data) > most:
                    raise ShardError(f"{source.address}: {name} has more than {most} bytes")
            return parse(data)
        except Interrupted as error:
            problem = str(error)
        except ShardError:
            raise
        except ValueError as error:
            problem = f"{name}: {error}"
        failures += 1
        _pause(failures, source, problem)


def _pause(failures: int, source: Source, problem: str) -> None:
    if failures >= TRIES:
        raise ShardError(f"{source.address}: {problem} (given up after {TRIES} tries)")
    time.sleep(FIRST_PAUSE * 2 ** (failures - 1))


@contextmanager
def _alone_with(path: Path, wait: bool) -> Iterator[BinaryIO | None]:
    """Open a file to append to, locked against other processes and threads; None if it is not free.

    The lock goes with the process that holds it, however that ends.
    """
    while True:
        with open(path, "a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield None
                return
            # The one before may have renamed the file while this one waited for it.
            if _same_file(path, file):
                yield file
                return


def _same_file(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
