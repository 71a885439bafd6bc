"""Sets that are read from afar: a thousand broken answers and kills, and what proof costs.

    python -m benchmarks.store faults --trials 1000
    python -m benchmarks.store kills --trials 1000
    python -m benchmarks.store speed --mb 400

`faults` and `kills` are the long forms of tests/shards/test_faults.py and test_cache.py. `speed`
compares with sha256sum, stock webdataset, curl, cp and s3fs, in turn, in one run, and takes the
median of the rounds' ratios; nginx and moto's S3 server are on the loopback.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import click
import numpy as np
import webdataset

from clsp.shards.images import encode_image, load_pixels, open_images
from clsp.shards.reader import ShardSet
from clsp.shards.record import Record
from clsp.shards.share import pull, push
from clsp.shards.store import index_folder, open_set
from clsp.shards.writer import write_shard
from tests.shards.campaigns import break_pulls, kill_readers
from tests.shards.test_large import write_huge_set

from .common import alternate, in_turn, ratio, report

POSITIVES = 4


def write_set(folder: Path, sizes: list[int], side: int | None, positives: int) -> ShardSet:
    """Return a set of digits, or of noise of `side` pixels, which fills a disk sooner."""
    (folder / "data").mkdir(parents=True)
    if side is None:
        pixels = load_pixels(open_images("digits"))
    else:
        pixels = np.random.default_rng(0).integers(0, 256, (64, side, side, 3), np.uint8)
    images = [encode_image(image, "png") for image in pixels[:64]]
    first = 0
    for number, size in enumerate(sizes):
        records = (
            Record(
                f"digit-{n:04d}",
                images[n % 64],
                tuple(images[(n + 1 + j) % 64] for j in range(positives)),
            )
            for n in range(first, first + size)
        )
        write_shard(folder / "data" / f"train-{number:05d}.tar", records, positives)
        first += size
    return index_folder(folder)


@contextlib.contextmanager
def nginx(folder: Path) -> Iterator[str]:
    """Serve `folder` with nginx as Debian has it; yields its address."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as own:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
        if program is None:
            raise click.ClickException("no nginx on this machine")
        user = "user root;" if os.getuid() == 0 else ""
        (Path(own) / "nginx.conf").write_text(
            f"{user} daemon off; pid {own}/pid; error_log {own}/error.log;\n"
            "events {} http { access_log off; sendfile on;\n"
            f"server {{ listen 127.0.0.1:{port}; root {folder}; }} }}\n"
        )
        server = subprocess.Popen([program, "-e", f"{own}/log", "-c", f"{own}/nginx.conf"])
        time.sleep(0.5)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait()


@contextlib.contextmanager
def bucket() -> Iterator[Any]:
    """Run moto's S3 server in a process of its own; yields s3fs with an empty bucket `sets`."""
    import s3fs

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
    os.environ["AWS_ACCESS_KEY_ID"] = os.environ["AWS_SECRET_ACCESS_KEY"] = "none"
    try:
        for _ in range(200):
            time.sleep(0.1)
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
        files = s3fs.S3FileSystem(use_listings_cache=False)
        files.mkdir("sets")
        yield files
    finally:
        server.terminate()
        server.wait()


@click.group()
def main() -> None:
    """Measure how sets are read, pushed and pulled."""


_trials = click.option("--trials", default=1000, show_default=True)


@main.command()
@_trials
def faults(trials: int) -> None:
    """Pull from a server that breaks its answers, and count silent faults."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = write_set(folder / "2", [3, 4], None, 2)
        older = write_set(folder / "1", [3, 4], None, 1)
        with (
            patch("clsp.shards.download.FIRST_PAUSE", 0.001),
            patch("clsp.shards.remote.TIMEOUT", 0.5),
        ):
            found = break_pulls(shards, older.folder, folder / "here", trials)
    report("store-faults", found)


@main.command()
@_trials
def kills(trials: int) -> None:
    """Kill readers in the middle of a download, and count files with wrong bytes."""
    with tempfile.TemporaryDirectory() as name:
        shards = write_set(Path(name) / "set", [6] * 5, None, 2)
        found = kill_readers(shards, Path(name) / "cache", trials)
    report("store-kills", found)


@main.command()
@click.option("--mb", default=400, show_default=True, help="Megabytes of the set that is copied.")
@click.option("--rounds", default=9, show_default=True, help="Of copies; a disk's rate swings.")
def speed(mb: int, rounds: int) -> None:
    """Compare verifying, opening, reading, pushing and pulling with what does less."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = {**_reading(folder), **_opening(folder), **_copying(folder, mb, rounds)}
    report("store-speed", result)


def _opening(folder: Path) -> dict[str, float]:
    write_huge_set(folder / "huge")
    seconds = alternate({"open": lambda: open_set(folder / "huge")})["open"]
    shutil.rmtree(folder / "huge")
    return {"seconds to open 10,000 shards of 1,000 records": round(seconds, 3)}


def _reading(folder: Path) -> dict[str, float]:
    """Random reads of an anchor and one positive, and webdataset's pass over whole records."""
    shards = write_set(folder / "reads", [1000] * 10, None, POSITIVES)
    dice = random.Random(0)
    wanted = [(dice.randrange(10_000), f"p{dice.randrange(POSITIVES)}") for _ in range(50_000)]
    urls = [str(shards.shard_path(shard)) for shard in shards.manifest.shards]

    def ours() -> None:
        for index, positive in wanted:
            shards.read(index, ("anchor", positive))

    def theirs() -> None:
        assert sum(1 for _ in webdataset.WebDataset(urls, shardshuffle=False)) == 10_000

    seconds = alternate({"ours": ours, "theirs": theirs})
    mine, stock = 50_000 / seconds["ours"], 10_000 / seconds["theirs"]
    return {
        "random (anchor, positive) reads a second": round(mine),
        "records a second of stock webdataset, in order": round(stock),
        "reads against webdataset": round(mine / stock, 2),
    }


def _copying(folder: Path, mb: int, rounds: int) -> dict[str, float]:
    size = 64 * 64 * 3 * (1 + POSITIVES)
    each = 20_000_000 // size
    shards = write_set(folder / "large", [each] * (mb // 20), 64, POSITIVES)
    total = sum(shard.bytes for shard in shards.manifest.shards)
    files = [shard.name for shard in shards.manifest.shards]
    names = [*files, *(shard.index_name for shard in shards.manifest.shards)]
    fresh = (folder / f"to{number}" for number in itertools.count())

    def curl(address: str, to: Path) -> None:
        (to / "data").mkdir(parents=True)
        urls = "{" + ",".join(names) + "}"
        command = ["curl", "-s", "-f", "-o", f"{to}/#1", f"{address}/{urls}"]
        subprocess.run(command, check=True)
        subprocess.run(["sync", *(str(to / name) for name in names)], check=True)

    def cp(to: Path) -> None:
        subprocess.run(["cp", "-r", str(shards.folder), str(to)], check=True)
        subprocess.run(["sync", *(str(to / name) for name in names)], check=True)

    sums = ["sha256sum", *names]
    with nginx(shards.folder) as address:
        seconds = in_turn(
            {
                "verify": shards.verify,
                "sha256sum": lambda: subprocess.run(
                    sums, cwd=shards.folder, check=True, capture_output=True
                ),
                "pull": lambda: pull(address, next(fresh)),
                "curl": lambda: curl(address, next(fresh)),
                "push": lambda: push(shards.folder, str(next(fresh)), source_license="mit"),
                "cp": lambda: cp(next(fresh)),
            },
            rounds,
        )
    with bucket() as objects:
        prefix = "s3://sets/set"

        def empty(task: Callable[[], object]) -> Callable[[], None]:
            def run() -> None:
                if objects.exists(prefix):
                    objects.rm(prefix, recursive=True)
                task()

            return run

        paths = [str(shards.folder / name) for name in names]
        seconds |= in_turn(
            {
                "push to S3": empty(lambda: push(shards.folder, prefix, source_license="mit")),
                "s3fs": empty(lambda: objects.put(paths, [f"{prefix}/{n}" for n in names])),
            },
            rounds=3,
        )
    rates = {f"{name}, MB/s": round(total / 1e6 / median(s)) for name, s in seconds.items()}
    return {
        "MB": round(total / 1e6),
        "rounds of copies": rounds,
        **rates,
        "verify against sha256sum": round(ratio(seconds["sha256sum"], seconds["verify"]), 2),
        "pull against curl and sync": round(ratio(seconds["curl"], seconds["pull"]), 2),
        "push against cp and sync": round(ratio(seconds["cp"], seconds["push"]), 2),
        "push to S3 against s3fs": round(ratio(seconds["s3fs"], seconds["push to S3"]), 2),
    }


if __name__ == "__main__":
    main()
