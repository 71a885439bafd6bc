"""Round trips through what others use are exact, and what does not fit is refused."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
from click.testing import CliRunner

from clsp.shards.__main__ import main
from clsp.shards.images import open_images
from clsp.shards.reader import ShardSet
from clsp.shards.store import open_set


def clsp_shards(*arguments: object):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def records(shards: ShardSet) -> list[object]:
    return [shards.record(row) for row in range(len(shards))]


@pytest.mark.parametrize("image_format", ["png", "webp", "jpeg"])
@pytest.mark.parametrize("anchors", [True, False])
@pytest.mark.parametrize("place", ["folders", "all.parquet"])
def test_a_round_trip_is_exact(
    make_set, tmp_path: Path, image_format: str, anchors: bool, place: str
) -> None:
    shards = make_set(tmp_path / "set", (5, 5, 2), image_format=image_format, anchors=anchors)
    result = clsp_shards("export", shards.folder, tmp_path / place)
    assert result.exit_code == 0, result.output
    again = tmp_path / "again"
    result = clsp_shards("import", tmp_path / place, again, "--shard-size", 5)
    assert result.exit_code == 0, result.output
    open_set(again).verify(deep=True)
    assert open_set(again).manifest.shards == shards.manifest.shards


def test_datasets_reads_the_parquet(digit_set: ShardSet, tmp_path: Path) -> None:
    clsp_shards("export", digit_set.folder, tmp_path / "x.parquet")
    loaded = datasets.Dataset.from_parquet(str(tmp_path / "x.parquet"), cache_dir=str(tmp_path))
    assert loaded.column_names == ["key", "anchor", "p0", "p1", "json"]
    for row, expected in zip(loaded, range(40), strict=True):
        images = [np.asarray(row[name].convert("RGB")) for name in ("anchor", "p0", "p1")]
        np.testing.assert_array_equal(images, digit_set.pixels(expected, ["anchor", "p0", "p1"]))


def test_arrays_come_and_go(tmp_path: Path) -> None:
    """The reference's layout, (N, K, H, W, 3), given the images in the same order."""
    source = open_images("digits:test")
    pixels = np.random.default_rng(0).integers(0, 256, (len(source), 2, 8, 8, 3), np.uint8)
    np.save(tmp_path / "in.npy", pixels)
    command = ["import", tmp_path / "in.npy", tmp_path / "set", "--anchors", "digits:test"]
    result = clsp_shards(*command, "--shard-size", 100)
    assert result.exit_code == 0, result.output
    shards = open_set(tmp_path / "set")
    shards.verify(deep=True)
    assert shards.keys == [source.key(index) for index in range(len(source))]
    for row in (0, 150, len(source) - 1):
        np.testing.assert_array_equal(shards.pixels(row, ["p0", "p1"]), pixels[row])
        np.testing.assert_array_equal(shards.pixels(row, ["anchor"])[0], source.read(row))
        assert shards.record(row).meta["label"] == source.labels[row]
    assert clsp_shards("export", shards.folder, tmp_path / "out.npy").exit_code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), pixels)
    assert (tmp_path / "out.keys.txt").read_text().split() == shards.keys


def test_what_does_not_fit_is_refused(tmp_path: Path, make_set) -> None:
    np.save(tmp_path / "flat.npy", np.zeros((3, 8, 8, 3), np.uint8))
    np.save(tmp_path / "few.npy", np.zeros((3, 2, 8, 8, 3), np.uint8))
    np.save(tmp_path / "code.npy", np.array([print], object), allow_pickle=True)
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("flat.npy", "expected uint8 (N, K, H, W, 3)"),
        ("few.npy", "has 3 rows of 8x8 images, digits 1797 images"),
        ("code.npy", "is no plain array"),
        ("empty", "holds no folder of an anchor"),
    ):
        command = ["import", tmp_path / name, tmp_path / "o", "--anchors", "digits"]
        result = clsp_shards(*command)
        assert result.exit_code == 1
        assert message in result.output
    shards = make_set(tmp_path / "set", sizes=(3,))
    clsp_shards("export", shards.folder, tmp_path / "folders")
    (tmp_path / "folders" / "digit-0001" / "p1.png").unlink()
    result = clsp_shards("import", tmp_path / "folders", tmp_path / "o2")
    assert "digit-0001 has ['anchor.png', 'p0.png'], expected" in result.output
    assert not (tmp_path / "o2" / "manifest.json").exists()
