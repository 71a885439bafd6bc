"""Break the writing of shards in five ways, hundreds of times, and look for a partial shard.

    python -m benchmarks.faults --faults 500

In turn: an error at a member, a full disk (ENOSPC) and a broken one (EIO) in the middle of a write,
SIGTERM, and an upload to a real S3 server on loopback that is cut when its process is killed. Each
at a random place or moment; then the same shard is written again, undisturbed.
"""

from __future__ import annotations

import argparse
import errno
import io
import itertools
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest.mock import patch

import numpy as np

from benchmarks.common import RESULTS, report
from clsp.generate.output import Bucket, Folder
from clsp.shards import files, writer
from clsp.shards.images import encode_image
from clsp.shards.record import Record, members

NAME = "data/train-00000.tar"
KINDS = ("member", "ENOSPC", "EIO", "SIGTERM", "torn upload")
WRONG = ("partial", "left_behind", "not_mended")


def records(count: int = 4) -> list[Record]:
    """Return small records, the same ones every time."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 2, 8, 8, 3), np.uint8)
    images = [[encode_image(image, "png") for image in pair] for pair in pixels]
    return [Record(f"k{n}", a, (p,), {}, "png") for n, (a, p) in enumerate(images)]


def contents(root: Path) -> dict[str, bytes]:
    """Return every file below `root`, temporaries too, by its name."""
    return {path.name: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@contextmanager
def broken_member(number: int) -> Iterator[None]:
    """Raise where the shard's member of that number would be written."""
    count = itertools.count()

    def failing(record: Record) -> Iterator[tuple[str, bytes]]:
        for member in members(record):
            if next(count) == number:
                raise RuntimeError("a fault")
            yield member

    with patch.object(writer, "members", failing):
        yield


@contextmanager
def broken_write(number: int, code: int) -> Iterator[None]:
    """Fail the write of that number after half of its bytes, as a full disk does."""
    count = itertools.count()

    class Failing(io.FileIO):
        def write(self, data: bytes) -> int:  # type: ignore[override]
            if next(count) == number:
                super().write(data[: len(data) // 2])
                raise OSError(code, "a fault")
            return super().write(data)

    def opened(path: Path, mode: str) -> Failing:
        return Failing(str(path), mode.replace("b", ""))

    of_writer, of_files = (patch.object(m, "open", opened, create=True) for m in (writer, files))
    with of_writer, of_files:
        yield


def fork(work: Callable[[], object]) -> int:
    """Return the pid of a fork of this process that does `work`, silently, and ends."""
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            work()
        finally:
            os._exit(0)
    return pid


def terminate(root: Path, moment: float) -> None:
    """Send SIGTERM to a process that writes the shard at `root`, seconds after its start."""
    pid = fork(lambda: Folder(root).add_shard(NAME, records(), positives=1))
    time.sleep(moment)
    os.kill(pid, signal.SIGTERM)
    os.waitpid(pid, 0)


class Proxy:
    """A proxy before a server on loopback that lets so many bytes pass to it, and then no more."""

    def __init__(self, server: str, limit: int) -> None:
        self._server = ("127.0.0.1", int(server.rpartition(":")[2]))
        self.limit, self.passed = limit, 0
        self._ends = [socket.create_server(("127.0.0.1", 0))]
        self.address = f"http://127.0.0.1:{self._ends[0].getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._ends[0].accept()
                upstream = socket.create_connection(self._server)
                self._ends += [client, upstream]
                for ends in ((client, upstream, True), (upstream, client, False)):
                    threading.Thread(target=self._pump, args=ends, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while not self.full and (data := source.recv(1 << 16)):
                if counted:
                    data = data[: self.limit - self.passed]
                    self.passed += len(data)
                    # moto takes a header that ends early for a whole one; no store does.
                    if data.startswith((b"PUT", b"HEAD", b"GET")) and b"\r\n\r\n" not in data:
                        continue
                sink.sendall(data)

    @property
    def full(self) -> bool:
        """True when nothing passes any more."""
        return self.passed >= self.limit

    def close(self) -> None:
        """Break all connections."""
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def tear_upload(server: str, prefix: str, after: int) -> int:
    """Kill a process that uploads the shard when `after` bytes have reached the server.

    Returns how many have: fewer when the upload ended first.
    """
    proxy = Proxy(server, after)

    def upload() -> None:
        os.environ["AWS_ENDPOINT_URL"] = proxy.address
        Bucket(f"s3://sets/{prefix}").add_shard(NAME, records(), positives=1)

    pid = fork(upload)
    while not proxy.full and os.waitpid(pid, os.WNOHANG) == (0, 0):
        time.sleep(0.001)
    if proxy.full:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    proxy.close()
    return proxy.passed


@contextmanager
def s3_server() -> Iterator[str]:
    """Run moto's S3 server with an empty bucket `sets` in it; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stderr=subprocess.DEVNULL,
    )
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
    try:
        while True:
            try:
                _request(f"{address}/sets", "PUT")
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield address
    finally:
        process.kill()
        process.wait()


def _request(url: str, method: str = "GET") -> bytes:
    # The server wants to know who asks, and believes it.
    request = urllib.request.Request(url, method=method, headers={"Authorization": "AWS test:test"})
    with urllib.request.urlopen(request) as answer:
        data: bytes = answer.read()
    return data


def objects(server: str, prefix: str) -> dict[str, bytes]:
    """Return the objects under a prefix of the bucket, by the last part of their names."""
    listing = _request(f"{server}/sets?list-type=2&prefix={prefix}/").decode()
    keys = re.findall(r"<Key>(.*?)</Key>", listing)
    return {key.rpartition("/")[2]: _request(f"{server}/sets/{key}") for key in keys}


def campaign(faults: int, folder: Path, dice: random.Random) -> dict[str, int]:
    """Break so many writes, of each kind in turn; count the kinds and what was wrong after them.

    partial: shards or indices that are visible and not whole; left_behind: files that an error
    left; not_mended: shards that were not whole after they were written again.
    """
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    os.environ |= {"AWS_DEFAULT_REGION": "us-east-1"}
    import s3fs  # noqa: F401  (once, for all forks)

    began = time.monotonic()
    Folder(folder / "whole").add_shard(NAME, records(), positives=1)
    moment, whole = time.monotonic() - began, contents(folder / "whole")
    total = sum(len(members(record)) for record in records())
    counts = Counter(dict.fromkeys((*KINDS, "unharmed", *WRONG), 0))
    with s3_server() as server:
        sent = tear_upload(server, "whole", after=1 << 30)
        for number in range(faults):
            kind, name = KINDS[number % len(KINDS)], f"set-{number}"
            root = folder / name
            with suppress(RuntimeError, OSError):
                if kind == "torn upload":
                    tear_upload(server, name, dice.randrange(1, sent))
                elif kind == "SIGTERM":
                    terminate(root, dice.uniform(0, 2 * moment))
                else:
                    # Beside the members, the end of the tar and the index are written.
                    place = dice.randrange(total + 2 * (kind != "member"))
                    with (
                        broken_member(place)
                        if kind == "member"
                        else broken_write(place, getattr(errno, kind))
                    ):
                        Folder(root).add_shard(NAME, records(), positives=1)
            found = contents(root) | objects(server, name)
            visible = {n: data for n, data in found.items() if not n.startswith(".")}
            counts[kind] += 1
            counts["partial"] += sum(data != whole[n] for n, data in visible.items())
            counts["unharmed"] += visible.keys() == whole.keys()
            if kind not in ("SIGTERM", "torn upload"):
                counts["left_behind"] += len(found)
            if kind == "torn upload":
                tear_upload(server, name, after=1 << 30)
                counts["not_mended"] += objects(server, name) != whole
            else:
                Folder(root).add_shard(NAME, records(), positives=1)
                found = {n: d for n, d in contents(root).items() if not n.startswith(".")}
                counts["not_mended"] += found != whole
    return dict(counts)


def main() -> None:
    """Break so many writes, and report what was wrong after them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS, help="for faults.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = campaign(options.faults, Path(name), random.Random(options.seed))
    report("faults", found, options.results)
    sys.exit(any(found[name] for name in WRONG))


if __name__ == "__main__":
    main()
