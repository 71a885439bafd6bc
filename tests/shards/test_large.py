"""Large sets: opening one costs its manifest, and reading it memory that does not grow."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from clsp.shards.check import BLOCK, ShardError
from clsp.shards.manifest import Manifest, ShardFile, save_manifest
from clsp.shards.reader import ShardSet
from clsp.shards.store import open_set

SHARDS, SAMPLES = 10_000, 1_000
BYTES = SAMPLES * 6 * BLOCK

OPEN = r"""
import json, re, sys, time
from clsp.shards.order import epoch_order
from clsp.shards.store import open_set
began = time.perf_counter()
shards = open_set(sys.argv[1])
seconds = time.perf_counter() - began
keys = [shards.key(0), shards.key(999)]
order = epoch_order(0, 1, shards.shard_sizes)
# ru_maxrss would be that of the process which started this one, if that was larger.
peak = int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1]) * 1024
print(json.dumps([len(shards), len(order), seconds, keys, peak]))
"""


def write_huge_set(folder: Path) -> None:
    """10^7 records by their manifest; the tars are holes and only the first index is real."""
    (folder / "data").mkdir(parents=True)
    lines = []
    for row in range(SAMPLES):
        places = [f"{name} {(6 * row + n) * BLOCK} 9" for n, name in enumerate(("p0.png", "json"))]
        lines.append(" ".join(f"{place} k{row}.{place.split()[0]}" for place in places))
    index = f"v1.2 {SAMPLES}\n" + "\n".join(lines) + "\n"
    shards = []
    for number in range(SHARDS):
        name = f"data/train-{number:05d}.tar"
        (folder / name).touch()
        os.truncate(folder / name, BYTES)
        (folder / name).with_suffix(".idx").write_text("" if number else index)
        shards.append(ShardFile(name, SAMPLES, BYTES, "0" * 64, "1" * 64))
    save_manifest(folder, Manifest(1, "png", 8, SHARDS * SAMPLES, tuple(shards), anchors=False))


def test_ten_million_records_open_in_seconds_and_a_gibibyte(tmp_path: Path) -> None:
    write_huge_set(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", OPEN, str(tmp_path)], capture_output=True, text=True, check=True
    )
    samples, ordered, seconds, keys, peak = json.loads(result.stdout)
    assert samples == ordered == 10**7
    assert keys == ["k0", "k999"]
    assert seconds < 10
    assert peak < 2**30


def test_few_indexes_and_files_are_kept(make_set, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("clsp.shards.reader._MOST_INDEXED", 10)
    monkeypatch.setattr("clsp.shards.reader._MOST_OPEN", 3)
    before = len(os.listdir("/proc/self/fd"))
    shards = make_set(tmp_path / "set", sizes=[2] * 20)
    for number in (*range(40), *range(0, 40, 7)):
        assert shards.record(number).key == shards.key(number) == f"digit-{number:04d}"
    assert len(os.listdir("/proc/self/fd")) - before <= 3
    assert shards._index.cache_info().currsize <= 5


def test_an_index_that_points_outside_its_shard_is_refused(make_set, tmp_path: Path) -> None:
    shards = make_set(tmp_path / "set", sizes=(2,))
    path, size = shards.index_path(shards.manifest.shards[0]), shards.manifest.shards[0].bytes
    text = path.read_text()
    for offset, length in ((10**30, 5), (-1, 5), (512, size), (512, -1)):
        path.write_text(re.sub(r"png 512 \d+", f"png {offset} {length}", text, count=1))
        with pytest.raises(ShardError, match=r"train-00000\.idx: digit-0000\.anchor\.png has"):
            ShardSet(shards.folder, shards.manifest).key(0)
    path.write_text(text + "x" * 10**6)
    with pytest.raises(ShardError, match="larger than any index"):
        ShardSet(shards.folder, shards.manifest).key(0)
    path.write_text(text)
    assert open_set(shards.folder).key(0) == "digit-0000"
