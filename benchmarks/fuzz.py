"""Random damage to a set's files: is anything but a clear error ever the answer?

Each trial changes the manifest, the index, the tar, or an image of a small set; in half of the
trials hashes and sizes are made to agree again, so that the parsers behind them are reached. All
is read in forked processes of 1 GiB of address space. Mutations are random, not guided by coverage.

Outcomes: refused with a ShardError; same, where the damage is of no consequence (a class's name);
other, where the manifest itself vouches for other pixels. The bad ones: silent, when other pixels
passed by the old hashes; crashed, hung, and died.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import click
import numpy as np

from clsp.shards.check import ShardError, walk
from clsp.shards.images import encode_image
from clsp.shards.manifest import Manifest, save_manifest
from clsp.shards.record import Record
from clsp.shards.store import open_set
from clsp.shards.writer import write_shard

from .common import RESULTS, report

FORMATS = ("png", "webp", "jpeg")
Whole = dict[str, tuple[dict[str, bytes], list[np.ndarray]]]  # by format: files, records' pixels
NUMBERS = (b"0", b"-1", b"9" * 30, b"1e400", b"\0", b"\xff" * 4, b"../", b"{", b"[", b'"', b"null")


def write_set(folder: Path, image_format: str) -> None:
    """Write two records with an anchor and two positives."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8, 3), np.uint8)
    images = [[encode_image(image, image_format) for image in row] for row in pixels]
    records = [
        Record(f"k{n}", anchor, tuple(rest), {"label": n}, image_format)
        for n, (anchor, *rest) in enumerate(images)
    ]
    (folder / "data").mkdir(parents=True)
    shard = write_shard(folder / "data" / "train-00000.tar", records, 2)
    save_manifest(folder, Manifest(2, image_format, 8, 2, (shard,), classes=("a", "b")))


def mutate(data: bytes, dice: random.Random) -> bytes:
    """Change some bytes: flipped, replaced by telling ones, cut out, doubled, or swapped."""
    changed = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 5))):
        place, size = dice.randrange(len(changed) or 1), dice.choice((1, 2, 4, 16, 512))
        kind = dice.randrange(5)
        if kind == 0 and changed:
            changed[place] ^= 1 << dice.randrange(8)
        elif kind == 1:
            word = dice.choice(NUMBERS)
            changed[place : place + len(word)] = word
        elif kind == 2:
            del changed[place : place + size]
        elif kind == 3:
            changed[place:place] = changed[place : place + size]
        else:
            changed[place : place + size] = dice.randbytes(size)
    return bytes(changed)


def damage(folder: Path, files: dict[str, bytes], dice: random.Random) -> bool:
    """Write the set's files with one of them damaged; True when the manifest vouches for that."""
    tar, idx, manifest = "data/train-00000.tar", "data/train-00000.idx", "manifest.json"
    changed = dict(files)
    what = dice.choice((tar, idx, manifest, "image", "image"))
    if what == "image":
        (folder / tar).write_bytes(files[tar])
        member = dice.choice(list(walk(folder / tar)))
        old = files[tar][member.offset : member.offset + member.size]
        new = mutate(old, dice)[: member.size].ljust(member.size, b"\0")
        # The record's JSON hashes it rightly, so that the image's reader is reached.
        before, after = (hashlib.sha256(part).hexdigest().encode() for part in (old, new))
        whole = files[tar][: member.offset] + new + files[tar][member.offset + member.size :]
        changed[tar] = whole.replace(before, after)
    else:
        changed[what] = mutate(files[what], dice)
    sealed = what in (manifest, "image")
    if what == "image" or (what != manifest and dice.random() < 0.5):
        sealed = True
        values = json.loads(files[manifest])
        values["shards"][0].update(
            bytes=max(1, len(changed[tar])),
            sha256=hashlib.sha256(changed[tar]).hexdigest(),
            idx_sha256=hashlib.sha256(changed[idx]).hexdigest(),
        )
        changed[manifest] = json.dumps(values).encode()
    for name, data in changed.items():
        (folder / name).write_bytes(data)
    return sealed


def outcome(folder: Path, pixels: list[np.ndarray]) -> str:
    """Return what reading a set came to: "refused", "same", "other" or the error that it was.

    same: all records came back with the pixels that were written; other: with other ones.
    """
    try:
        shards = open_set(folder)
        shards.verify(deep=True)
        names = ["anchor", "p0", "p1"]
        found = [shards.pixels(row, names) for row in range(len(shards))]
        for row in range(len(shards)):
            shards.record(row)
    except ShardError:
        return "refused"
    except Exception as error:
        return f"crashed: {error!r}"[:200]
    same = len(found) == len(pixels) and all(map(np.array_equal, found, pixels))
    return "same" if same else "other"


def run(
    first: int, stop: int, folder: Path, whole: Whole, seconds: int
) -> list[tuple[int, str, float]]:
    """Return number, outcome and CPU seconds of each trial, all made in one forked process.

    A process that dies, or sits in a trial for `seconds`, ends with that trial's outcome, and
    another goes on behind it.
    """
    found: list[tuple[int, str, float]] = []
    while first < stop:
        readable, writable = os.pipe()
        if (child := os.fork()) == 0:
            os.close(readable)
            try:
                trials(range(first, stop), folder, whole, writable, seconds)
            finally:
                os._exit(int(sys.exc_info()[0] is not None))
        os.close(writable)
        with open(readable) as pipe:
            for line in pipe:
                number, cpu, what = line.rstrip("\n").split(" ", 2)
                found.append((int(number), what, float(cpu)))
                first = int(number) + 1
        if status := os.waitpid(child, 0)[1]:
            hung = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM
            found.append((first, f"{'hung' if hung else 'died'}: status {status}", 0.0))
            first += 1
    return found


def trials(numbers: range, folder: Path, whole: Whole, pipe: int, seconds: int) -> None:
    """Write a line for each trial: its number, CPU seconds, and outcome."""
    # Beyond what the process has mapped already, which may be torch.
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 2**30,) * 2)
    for number in numbers:
        dice, name = random.Random(number), FORMATS[number % len(FORMATS)]
        files, pixels = whole[name]
        signal.alarm(seconds)
        sealed = damage(folder / name, files, dice)
        began = time.process_time()
        what = outcome(folder / name, pixels)
        if what == "other" and not sealed:
            what = "silent: other pixels by the old hashes"
        took = time.process_time() - began
        os.write(pipe, f"{number} {took:.4f} {ascii(what)[1:-1]}\n".encode())


def read_set(folder: Path) -> tuple[dict[str, bytes], list[np.ndarray]]:
    """Return a whole set's files by name, and the pixels of its records."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    shards = open_set(folder)
    pixels = [shards.pixels(row, ["anchor", "p0", "p1"]) for row in range(len(shards))]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}, pixels


@click.command()
@click.option("--n", default=100_000, show_default=True, help="Trials.")
@click.option(
    "--seconds", default=30, show_default=True, help="After which a trial counts as hung."
)
@click.option("--results", default=RESULTS, type=click.Path(path_type=Path))
def main(n: int, seconds: int, results: Path) -> None:
    """Read so many damaged sets; exit with 1 when one crashed, hung, or passed for another."""
    counts: Counter[str] = Counter(refused=0, same=0, other=0, silent=0, crashed=0, hung=0, died=0)
    bad: list[str] = []
    slowest = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for image_format in FORMATS:
            write_set(folder / image_format, image_format)
        whole = {image_format: read_set(folder / image_format) for image_format in FORMATS}
        for start in range(0, n, 1000):
            for number, what, took in run(start, min(start + 1000, n), folder, whole, seconds):
                kind = what.partition(":")[0]
                counts[kind] += 1
                slowest = max(slowest, took)
                if kind not in ("refused", "same", "other"):
                    bad.append(f"{number}: {what}")
    values = {"trials": n, **counts, "slowest seconds": round(slowest, 3), "bad": bad[:20]}
    report("fuzz", values, results)
    raise SystemExit(bool(bad))


if __name__ == "__main__":
    main()
