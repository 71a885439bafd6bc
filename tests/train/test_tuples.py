"""Batches: the same whoever reads them, from the cache or from the shards."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from clsp.shards.check import ShardError
from clsp.shards.images import decode_image
from clsp.shards.order import epoch_order, hash_key
from clsp.shards.reader import ShardSet
from clsp.shards.record import Record
from clsp.shards.store import index_folder, open_set
from clsp.shards.writer import write_shard
from clsp.train.tuples import TupleBatches, Tuples, decoded_set, load_tuples


def equal(a: Tuples, b: Tuples) -> bool:
    images = [torch.equal(a.anchor, b.anchor), torch.equal(a.positives, b.positives)]
    places = (a.step, a.epoch) == (b.step, b.epoch)
    return all(images) and bool((a.keys == b.keys).all()) and places


@pytest.fixture
def batches(digit_set: ShardSet) -> TupleBatches:
    return TupleBatches(digit_set, 8, seed=0, positives=1)


def test_a_batch_holds_the_orders_records(digit_set: ShardSet, batches: TupleBatches) -> None:
    order = epoch_order(0, 1, digit_set.shard_sizes)
    item = batches[batches.per_epoch + 2]
    slots = set()
    for row, index in enumerate(order[16:24]):
        record = digit_set.record(int(index))
        assert item.keys[row] == hash_key(record.key)
        anchor = item.anchor[row].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(anchor, decode_image(record.anchor))
        positive = item.positives[row, 0].permute(1, 2, 0).numpy()
        slots.add([bool((positive == decode_image(p)).all()) for p in record.positives].index(True))
    assert slots == {0, 1}


def test_every_positive_is_drawn_in_time(digit_set: ShardSet, batches: TupleBatches) -> None:
    pixels = np.stack([digit_set.pixels(n, ["p0", "p1"]) for n in range(40)])
    number = {hash_key(digit_set.key(n)): n for n in range(40)}
    counts = np.zeros((40, 2))
    for step in range(30 * batches.per_epoch):
        item = batches[step]
        for key, image in zip(item.keys, item.positives[:, 0], strict=True):
            n = number[int(key)]
            counts[n] += [bool((image.permute(1, 2, 0).numpy() == p).all()) for p in pixels[n]]
    assert counts.sum() == 30 * 40
    assert counts.min() >= 5  # of 15 expected


def test_the_cache_changes_nothing(
    digit_set: ShardSet, batches: TupleBatches, tmp_path: Path
) -> None:
    pixels = decoded_set(digit_set, tmp_path)
    cached = TupleBatches(digit_set, 8, seed=0, positives=1, pixels=pixels)
    assert all(equal(cached[step], batches[step]) for step in range(12))
    assert [path.name for path in tmp_path.iterdir()] == [f"{digit_set.id}.npy"]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_neither_workers_nor_a_late_start_change_a_batch(
    batches: TupleBatches, workers: int
) -> None:
    found = list(load_tuples(batches, 3, 12, workers=workers))
    assert len(found) == 9
    assert all(equal(item, batches[step]) for step, item in enumerate(found, start=3))


@pytest.mark.parametrize("world", [2, 4, 8])
def test_ranks_share_the_global_batch(
    digit_set: ShardSet, batches: TupleBatches, world: int
) -> None:
    ranks = [
        TupleBatches(digit_set, 8, 0, positives=1, rank=rank, world=world) for rank in range(world)
    ]
    for step in range(12):
        parts = [rank[step] for rank in ranks]
        whole = Tuples(
            torch.cat([part.anchor for part in parts]),
            torch.cat([part.positives for part in parts]),
            np.concatenate([part.keys for part in parts]),
            step,
            *parts[0][4:],
        )
        assert equal(whole, batches[step])


def test_positives_are_not_read_where_none_is_wanted(digit_set: ShardSet) -> None:
    assert TupleBatches(digit_set, 8, 0, positives=0)[0].positives.shape[1] == 0


@pytest.mark.parametrize("cached", [True, False])
def test_damage_is_an_error_and_not_a_batch(
    digit_set: ShardSet, tmp_path: Path, cached: bool
) -> None:
    shutil.copytree(digit_set.folder, tmp_path / "set")
    path = tmp_path / "set" / "data" / "train-00001.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1  # inside the first image
    path.write_bytes(data)
    damaged = open_set(tmp_path / "set")

    def read() -> object:
        if cached:
            return decoded_set(damaged, tmp_path / "cache")
        batches = TupleBatches(damaged, 8, 0, positives=1)
        return [batches[step] for step in range(batches.per_epoch)]

    with pytest.raises(ShardError, match=r"train-00001\.tar, record digit-0007: anchor has sha256"):
        read()
    assert not cached or not list((tmp_path / "cache").iterdir())


def test_a_set_without_anchors_is_refused(make_set, tmp_path: Path) -> None:
    shards = make_set(tmp_path / "set", sizes=(9,), anchors=False)
    assert decoded_set(shards, tmp_path / "cache") is None
    with pytest.raises(ShardError, match="carries no anchors"):
        TupleBatches(shards, 4, 0, positives=1)


def test_a_full_disk_leaves_no_cache(digit_set: ShardSet, tmp_path: Path) -> None:
    """A limit on file size stands for the full disk."""
    script = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from clsp.shards.store import open_set; from clsp.train.tuples import decoded_set\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "try: decoded_set(open_set(sys.argv[1]), Path(sys.argv[2]))\n"
        "except OSError as error: print(error)\n"
    )
    command = [sys.executable, "-c", script, str(digit_set.folder), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "File too large" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_several_positives_are_different_ones(digit_set: ShardSet, tmp_path: Path) -> None:
    pixels = decoded_set(digit_set, tmp_path)
    number = {hash_key(digit_set.key(n)): n for n in range(40)}
    for stored in (pixels, None):
        item = TupleBatches(digit_set, 8, 0, positives=2, pixels=stored)[1]
        for key, images in zip(item.keys, item.positives.permute(0, 1, 3, 4, 2), strict=True):
            found = {image.numpy().tobytes() for image in images}
            assert found == {image.tobytes() for image in pixels[number[int(key)], 1:]}
    with pytest.raises(ShardError, match="has 2 positives an anchor, 3 are asked for"):
        TupleBatches(digit_set, 8, 0, positives=3)


def test_labels_are_the_records(digit_set: ShardSet, tmp_path: Path) -> None:
    item = TupleBatches(digit_set, 8, 0, positives=0, labels=True)[2]
    label = {hash_key(digit_set.key(n)): n % 10 for n in range(40)}
    assert item.labels.tolist() == [label[int(key)] for key in item.keys]
    image = digit_set.record(0).anchor
    (tmp_path / "data").mkdir()
    record = Record("a", image, (image,), {}, "png")
    write_shard(tmp_path / "data" / "train-00000.tar", [record], 1)
    with pytest.raises(ShardError, match="record a has label None, expected an integer"):
        TupleBatches(index_folder(tmp_path), 1, 0, positives=0, labels=True)
