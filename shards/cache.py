"""Files of sets that lie elsewhere, kept here by their sha256 and fetched ahead."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .check import ShardError
from .download import download
from .remote import Source

DEFAULT_LIMIT = 100 * 10**9  # bytes
_MOST_AHEAD = 8  # shards


def default_cache() -> Path:
    """Return the user's folder for fetched shards, decoded sets and features (XDG convention)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clsp"


@dataclass(frozen=True)
class Cache:
    """The files of one source, in a folder that all sources and processes share.

    A file is named by its sha256, so sets that have shards in common keep them once, and two
    shards of one name never meet. When the files take more than `limit` bytes, those not used for
    longest are deleted; who has one open reads on.
    """

    folder: Path
    source: Source
    limit: int = DEFAULT_LIMIT

    def path(self, sha256: str) -> Path:
        """Return where the file of this sha256 lies if it is there."""
        return self.folder / sha256[:2] / sha256

    def get(
        self, name: str, sha256: str, size: int, *, exact: bool = True, wait: bool = True
    ) -> Path | None:
        """Return the path of a file of the set, fetched if it is not there; see `download`.

        None when another process is fetching it, unless `wait`. Another process may delete it
        before it is opened: then ask again.
        """
        path = self.path(sha256)
        with suppress(FileNotFoundError):
            found = path.stat().st_size
            if found == size or (not exact and found < size):
                os.utime(path)  # Used now; a mount may not keep times of access.
                return path
            path.unlink()
        if size > self.limit and exact:
            raise ShardError(f"{name} has {size} bytes, the cache may take {self.limit}")
        if not download(self.source, name, path, sha256, size, exact=exact, wait=wait):
            return None
        self._evict(keep=path)
        return path

    def _evict(self, keep: Path) -> None:
        with open(self.folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            files = []
            for path in self.folder.glob("??/*"):
                with suppress(FileNotFoundError):
                    status = path.stat()
                    files.append((status.st_mtime_ns, status.st_size, path))
            total = sum(size for _, size, _ in files)
            for _, size, path in sorted(files):
                if total <= self.limit:
                    return
                if path != keep and not _is_being_written(path):
                    path.unlink(missing_ok=True)
                    total -= size


def _is_being_written(path: Path) -> bool:
    """True for an unfinished download that some process holds."""
    if not path.name.endswith(".part"):
        return False
    with suppress(FileNotFoundError), open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


class Prefetch:
    """A thread that fetches shards in the order given, a few ahead of those already opened."""

    def __init__(self, fetch: Callable[[int], object], order: Sequence[int], ahead: int) -> None:
        """fetch: called with each shard's number; ahead: how many to be ahead of the reader."""
        self._fetch, self._order, self._ahead = fetch, order, ahead
        self._places = {number: place for place, number in enumerate(order)}
        self._allowed, self._stopped = ahead, False
        self._moved = threading.Condition()
        threading.Thread(target=self._run, daemon=True, name="clsp-prefetch").start()

    def opened(self, number: int) -> None:
        """Say that the reader has come to a shard."""
        with self._moved:
            self._allowed = max(self._allowed, self._places.get(number, -1) + 1 + self._ahead)
            self._moved.notify()

    def stop(self) -> None:
        """Fetch no further shard."""
        with self._moved:
            self._stopped = True
            self._moved.notify()

    def _run(self) -> None:
        for place, number in enumerate(self._order):
            with self._moved:
                while not self._stopped and place >= self._allowed:
                    self._moved.wait()
                if self._stopped:
                    return
            try:
                self._fetch(number)
            except (OSError, ShardError):
                return  # The reader will meet it, where it can be reported.


def shards_ahead(largest: int, limit: int) -> int:
    """Return how many shards to fetch ahead: what is waiting must not push out what is read.

    largest: bytes of the largest shard; limit: the cache's.
    """
    return max(1, min(_MOST_AHEAD, limit // (4 * largest)))
