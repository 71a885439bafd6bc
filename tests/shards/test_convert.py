"""Round trips through what others use are exact, and what does not fit is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import webdataset
from click.testing import CliRunner
from PIL import Image

from clsp.shards.__main__ import main
from clsp.shards.convert import export_parquet
from clsp.shards.images import encode_image, fit_square, open_images
from clsp.shards.manifest import save_manifest
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
    classes = tuple("abcdefghij") if anchors else None
    save_manifest(shards.folder, replace(shards.manifest, classes=classes))
    result = clsp_shards("export", shards.folder, tmp_path / "new" / place)
    assert result.exit_code == 0, result.output
    again = tmp_path / "again"
    assert [path.name for path in (tmp_path / "new").iterdir()] == [place]
    result = clsp_shards("import", tmp_path / "new" / place, again, "--shard-size", 5)
    assert result.exit_code == 0, result.output
    open_set(again).verify(deep=True)
    assert open_set(again).manifest.shards == shards.manifest.shards
    assert open_set(again).manifest.classes == classes


def test_datasets_reads_the_parquet(digit_set: ShardSet, tmp_path: Path) -> None:
    clsp_shards("export", digit_set.folder, tmp_path / "x.parquet")
    loaded = datasets.Dataset.from_parquet(str(tmp_path / "x.parquet"), cache_dir=str(tmp_path))
    assert loaded.column_names == ["key", "anchor", "p0", "p1", "json"]
    named = replace(digit_set.manifest, classes=tuple("abcdefghij"))
    export_parquet(ShardSet(digit_set.folder, named), tmp_path / "named.parquet")
    labelled = datasets.Dataset.from_parquet(
        str(tmp_path / "named.parquet"), cache_dir=str(tmp_path)
    )
    assert labelled.features["label"].int2str(labelled["label"][:12]) == list("abcdefghijab")
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
    # An export of a damaged set leaves nothing that looks like a smaller one.
    path = shards.folder / "data" / "train-00000.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2000] + bytes(2000))
    for place in ("broken", "broken.parquet"):
        assert clsp_shards("export", shards.folder, tmp_path / "x" / place).exit_code == 1
    assert not list((tmp_path / "x").iterdir())
    path.write_bytes(whole)
    (tmp_path / "folders" / "digit-0001" / "p1.png").unlink()
    result = clsp_shards("import", tmp_path / "folders", tmp_path / "o2")
    assert "digit-0001 has ['anchor.png', 'p0.png'], expected" in result.output
    assert not (tmp_path / "o2").exists()


def sample(n: int, pixels: np.ndarray, image_format: str = "png") -> dict[str, object]:
    """A record as somebody else has it."""
    names = ("img.png", "Aug1.png", "aug2.png")
    images = {name: encode_image(pixels[n + j], image_format) for j, name in enumerate(names)}
    return {"__key__": f"n01/im.age {n:03d}".replace(".", "_"), **images, "json": {"y": n % 5}}


@pytest.mark.parametrize("place", ["one.tar", "folder", "folder/data"])
def test_any_webdataset_comes_in_byte_for_byte(tmp_path: Path, place: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)
    samples = [sample(n, pixels) for n in range(12)]
    folder = tmp_path / ("in" if place == "one.tar" else place)
    folder.mkdir(parents=True)
    tars = [folder / f"part.{n}.tar" for n in range(1 if place == "one.tar" else 3)]
    for number, tar in enumerate(tars):
        with webdataset.TarWriter(str(tar)) as writer:
            for one in samples[number :: len(tars)]:
                writer.write(one)
    before = {tar: tar.read_bytes() for tar in tars}
    path = tars[0] if place == "one.tar" else tmp_path / "folder"
    names = ["--anchor=img.png", "--positive=Aug1.png", "--positive=aug2.png", "--label=json:y"]
    result = clsp_shards("import", path, tmp_path / "set", *names, "--shard-size", 5)
    assert result.exit_code == 0, result.output
    shards = open_set(tmp_path / "set")
    shards.verify(deep=True)
    assert shards.shard_sizes == (5, 5, 2)
    order = [n for number in range(len(tars)) for n in range(12)[number :: len(tars)]]
    for row, n in enumerate(order):
        record = shards.record(row)
        assert record.key.startswith(f"n01_im_age_{n:03d}-")
        wanted = [samples[n][name] for name in ("img.png", "Aug1.png", "aug2.png")]
        assert [record.anchor, *record.positives] == wanted
        assert record.meta == {"label": n % 5}
    assert {tar: tar.read_bytes() for tar in tars} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        {"set", "in" if place == "one.tar" else "folder"}
    )
    # And back by stock webdataset, which finds the same images under clsp's names.
    urls = [str(shards.shard_path(shard)) for shard in shards.manifest.shards]
    read = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [r["p1.png"] for r in read] == [samples[n]["aug2.png"] for n in order]


def test_a_webdataset_of_other_sizes_is_fitted_and_a_wrong_mapping_named(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 12, 16, 3), np.uint8)
    with webdataset.TarWriter(str(tmp_path / "x.tar")) as writer:
        for n in range(4):
            writer.write(sample(n, pixels))
    names = ["--anchor=img.png", "--positive=aug1.png"]
    place = [tmp_path / "x.tar", tmp_path / "set"]
    for more, message in (
        ([], "img.png has 16x12 pixels, expected 16x16; --image-size fits"),
        (["--positive=p7.png"], "no record has a member p7.png; the members found are"),
    ):
        result = clsp_shards("import", *place, *names, *more)
        assert (result.exit_code, message in result.output) == (1, True), result.output
        assert [p.name for p in tmp_path.iterdir()] == ["x.tar"]
    assert "needs --anchor and" in clsp_shards("import", *place, "--anchor=img.png").output
    (tmp_path / "empty").mkdir()
    result = clsp_shards("import", tmp_path / "empty", tmp_path / "set", *names)
    assert "holds no .tar file" in result.output
    result = clsp_shards("import", *place, *names, "--image-size=8")
    assert result.exit_code == 0, result.output
    shards = open_set(tmp_path / "set")
    shards.verify(deep=True)
    fitted = fit_square(Image.fromarray(pixels[2]), 8)
    np.testing.assert_array_equal(shards.pixels(1, ["p0"])[0], np.asarray(fitted))
