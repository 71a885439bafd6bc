"""Random damage to a set's files: is anything but a clear error ever the answer?

Each trial changes the manifest, the index, the tar, or an image of a small set; in half of the
trials hashes and sizes are made to agree again, so that the parsers behind them are reached. All
is read in 1 GiB of address space. Mutations are random, not guided by coverage.
"""

from __future__ import annotations

import hashlib
import json
import random
import resource
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


def damage(folder: Path, files: dict[str, bytes], dice: random.Random) -> None:
    """Write the set's files with one of them damaged."""
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
    if what == "image" or (what != manifest and dice.random() < 0.5):
        values = json.loads(files[manifest])
        values["shards"][0].update(
            bytes=max(1, len(changed[tar])),
            sha256=hashlib.sha256(changed[tar]).hexdigest(),
            idx_sha256=hashlib.sha256(changed[idx]).hexdigest(),
        )
        changed[manifest] = json.dumps(values).encode()
    for name, data in changed.items():
        (folder / name).write_bytes(data)


@click.command()
@click.option("--n", default=100_000, show_default=True, help="Trials.")
@click.option("--results", default=RESULTS, type=click.Path(path_type=Path))
def main(n: int, results: Path) -> None:
    """Read so many damaged sets; exit with 1 when anything but a ShardError came out."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**30, before[1]))
    counts: Counter[str] = Counter(refused=0, accepted=0, crashed=0)
    crashes: list[str] = []
    slowest = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kinds = []
        for image_format in FORMATS:
            write_set(folder / image_format, image_format)
            paths = [p for p in (folder / image_format).rglob("*") if p.is_file()]
            kinds.append({str(p.relative_to(folder / image_format)): p.read_bytes() for p in paths})
        for number in range(n):
            dice, at = random.Random(number), folder / FORMATS[number % len(FORMATS)]
            damage(at, kinds[number % len(FORMATS)], dice)
            began = time.process_time()
            try:
                shards = open_set(at)
                shards.verify(deep=True)
                for row in range(len(shards)):
                    shards.record(row)
                counts["accepted"] += 1  # a class renamed, a level of a pixel: sound in itself
            except ShardError:
                counts["refused"] += 1
            except Exception as error:
                counts["crashed"] += 1
                crashes.append(f"{number}: {error!r}"[:200])
            slowest = max(slowest, time.process_time() - began)
    resource.setrlimit(resource.RLIMIT_AS, before)
    values = {"trials": n, **counts, "slowest seconds": round(slowest, 3), "crashes": crashes[:20]}
    report("fuzz", values, results)
    raise SystemExit(bool(crashes))


if __name__ == "__main__":
    main()
