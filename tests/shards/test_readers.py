"""A set read by what others wrote: webdataset, datasets, tarfile, sha256sum, DALI's idx format."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import webdataset

from clsp.shards.images import decode_image
from clsp.shards.reader import ShardSet
from clsp.shards.store import open_set


@pytest.fixture(scope="module", params=["png", "webp", "jpeg"])
def shards(request, make_set, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("readers") / "set"
    return make_set(folder, sizes=(7, 5), image_format=request.param)


def pixels(shards: ShardSet) -> dict[str, list[np.ndarray]]:
    names = ["anchor", "p0", "p1"]
    return {shards.key(n): list(shards.pixels(n, names)) for n in range(len(shards))}


def test_stock_webdataset_reads_it(shards: ShardSet) -> None:
    urls = [str(shards.shard_path(shard)) for shard in shards.manifest.shards]
    expected, suffix = pixels(shards), shards.manifest.image_format
    found = {}
    for record in webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"):
        found[record["__key__"]] = [record[f"{n}.{suffix}"] for n in ("anchor", "p0", "p1")]
        assert record["json"]["label"] == int(record["__key__"][-4:]) % 10
    assert list(found) == list(expected)
    for key, images in found.items():
        np.testing.assert_array_equal(images, expected[key])


@pytest.mark.parametrize("streaming", [True, False])
def test_hugging_face_datasets_reads_it(shards: ShardSet, streaming: bool, tmp_path: Path) -> None:
    loaded = datasets.load_dataset(
        "webdataset",
        data_files=str(shards.folder / "data" / "*.tar"),
        split="train",
        streaming=streaming,
        cache_dir=str(tmp_path),
    )
    expected, suffix = pixels(shards), shards.manifest.image_format
    rows = {row["__key__"]: row for row in loaded}
    assert list(rows) == list(expected)
    for key, row in rows.items():
        images = [np.asarray(row[f"{n}.{suffix}"].convert("RGB")) for n in ("anchor", "p0", "p1")]
        np.testing.assert_array_equal(images, expected[key])
        assert row["json"]["label"] == int(key[-4:]) % 10


def test_the_index_is_dalis_format(shards: ShardSet) -> None:
    """Version 1.2, by its specification: a header, and EXT OFFSET SIZE NAME for each member."""
    for shard in shards.manifest.shards:
        header, *lines = shards.index_path(shard).read_text().splitlines()
        assert header == f"v1.2 {shard.samples}"
        with tarfile.open(shards.shard_path(shard)) as tar:
            members = {m.name: (m.offset_data, m.size) for m in tar}
        listed = {}
        for line in lines:
            words = line.split(" ")
            for extension, offset, size, name in zip(*[iter(words)] * 4, strict=True):
                assert name.endswith("." + extension)
                listed[name] = (int(offset), int(size))
        assert listed == members
        assert len(lines) == shard.samples


def test_sha256sum_accepts_it(shards: ShardSet) -> None:
    command = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    subprocess.run(command, cwd=shards.folder, check=True)
    manifest = (shards.folder / "manifest.json").read_bytes()
    assert shards.id == hashlib.sha256(manifest).hexdigest()


def test_tar_members_say_nothing_of_who_and_when(shards: ShardSet) -> None:
    with tarfile.open(shards.shard_path(shards.manifest.shards[0])) as tar:
        facts = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, m.type) for m in tar}
    assert facts == {(0, 0, 0, "", "", 0o644, tarfile.REGTYPE)}


def test_the_same_records_give_the_same_bytes(shards: ShardSet, make_set, tmp_path: Path) -> None:
    again = make_set(tmp_path / "set", (7, 5), image_format=shards.manifest.image_format)
    assert again.id == shards.id


def test_records_come_back_whole(shards: ShardSet) -> None:
    for number in range(len(shards)):
        record = shards.record(number)
        assert record.key == shards.key(number) == f"digit-{number:04d}"
        assert record.meta == {"label": number % 10}
        assert [decode_image(p).shape for p in record.positives] == [(8, 8, 3)] * 2
        images = [record.anchor, *record.positives]
        found = json.loads(shards.read(number, ["json"])["json"])["sha256"]
        assert list(found.values()) == [hashlib.sha256(image).hexdigest() for image in images]


def test_a_set_can_be_sent_to_another_process(shards: ShardSet) -> None:
    shards.record(0)  # opens a descriptor, which must not travel
    again = pickle.loads(pickle.dumps(shards))
    assert again.record(3) == shards.record(3)


@pytest.mark.parametrize("number", [-1, 12])
def test_a_record_that_is_not_there_is_an_error(shards: ShardSet, number: int) -> None:
    with pytest.raises(IndexError):
        shards.read(number)
    with pytest.raises(KeyError, match="p2"):
        open_set(shards.folder).read(0, ["p2"])
