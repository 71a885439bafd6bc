"""Positives-only sets: what is left out, what is paired again, and that no pair is ever wrong."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from sklearn.datasets import load_digits

from clsp.shards.__main__ import main
from clsp.shards.check import ShardError
from clsp.shards.images import encode_image, open_images
from clsp.shards.manifest import Manifest, save_manifest
from clsp.shards.pairing import pair_anchors
from clsp.shards.reader import ShardSet
from clsp.shards.record import Record
from clsp.shards.scores import load_hardness, save_hardness
from clsp.shards.store import open_set
from clsp.shards.writer import write_shard

ROOT = Path(__file__).parents[2]


def clsp_shards(*arguments: object):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twelve digits as JPEG files, CLASS/NNN.jpg."""
    digits = load_digits()
    for number in range(12):
        folder = tmp_path / "images" / str(digits.target[number])
        folder.mkdir(parents=True, exist_ok=True)
        pixels = (digits.images[number] * 255 / 16).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.jpg")
    return tmp_path / "images"


@pytest.fixture
def whole(images: Path, tmp_path: Path) -> ShardSet:
    """The set of those images, with their anchors, as `clsp generate` writes one."""
    source = open_images(f"folder:{images}")
    records = []
    for index in range(len(source)):
        anchor = np.asarray(source.read(index))
        meta = {"source": source.path(index), "source_sha256": source.file_sha256(index)}
        files = tuple(encode_image(np.roll(anchor, n + 1, axis=1), "png") for n in range(2))
        meta["label"] = int(source.labels[index])
        records.append(Record(source.key(index), encode_image(anchor, "png"), files, meta))
    folder = tmp_path / "whole"
    (folder / "data").mkdir(parents=True)
    shards = [
        write_shard(folder / "data" / f"train-{n:05d}.tar", records[5 * n : 5 * n + 5], 2)
        for n in range(3)
    ]
    save_manifest(folder, Manifest(2, "png", 8, 12, tuple(shards)))
    return open_set(folder)


@pytest.fixture
def stripped(whole: ShardSet, tmp_path: Path) -> ShardSet:
    result = clsp_shards("strip", whole.folder, tmp_path / "stripped")
    assert result.exit_code == 0, result.output
    return open_set(tmp_path / "stripped")


def test_a_stripped_set_has_everything_but_the_anchors(whole: ShardSet, stripped: ShardSet) -> None:
    stripped.verify(deep=True)
    assert not stripped.manifest.anchors
    assert stripped.keys == whole.keys
    for row in range(12):
        before, after = whole.record(row), stripped.record(row)
        assert after.anchor is None
        assert after.positives == before.positives
        rgb = after.meta.pop("rgb_sha256")
        assert after.meta == before.meta
        assert len(rgb) == 64
    anchors = {whole.record(row).anchor for row in range(12)}
    data = b"".join(path.read_bytes() for path in stripped.folder.rglob("*.*") if path.is_file())
    assert not [anchor for anchor in anchors if anchor in data]


def test_a_joined_set_is_the_whole_one(
    whole: ShardSet, stripped: ShardSet, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "view"
    result = clsp_shards("join", stripped.folder, "--anchors", f"folder:{images}", "--out", out)
    assert result.exit_code == 0, result.output
    assert "12 same" in result.output
    assert [path.name for path in out.iterdir()] == ["joined.json"]  # no image is copied
    joined = open_set(out)
    joined.verify(deep=True)
    names = ["p1", "anchor", "p0"]
    assert joined.keys == whole.keys
    assert joined.shard_sizes == whole.shard_sizes
    for row in range(12):
        np.testing.assert_array_equal(joined.pixels(row, names), whole.pixels(row, names))
        assert joined.record(row).positives == whole.record(row).positives
    assert joined.id not in (whole.id, stripped.id)


def test_training_reads_a_joined_view(
    whole: ShardSet, stripped: ShardSet, images: Path, tmp_path: Path
) -> None:
    """The same batches as of the whole set, and no anchor on the disk but the reader's own."""
    from clsp.train.tuples import TupleBatches

    clsp_shards("join", stripped.folder, "--anchors", f"folder:{images}", "--out", tmp_path / "v")
    joined = TupleBatches(open_set(tmp_path / "v"), 4, 0, positives=1)
    plain = TupleBatches(whole, 4, 0, positives=1)
    for step in range(6):
        for one, two in (
            (joined[step].anchor, plain[step].anchor),
            (joined[step][1], plain[step][1]),
        ):
            np.testing.assert_array_equal(one, two)


def test_a_view_is_itself_and_not_the_set_that_it_joins(
    stripped: ShardSet, images: Path, tmp_path: Path
) -> None:
    """What is done to a view changes nothing beside the shards that it reads."""
    before = {path: path.read_bytes() for path in stripped.folder.rglob("*") if path.is_file()}
    view = tmp_path / "v"
    result = clsp_shards("join", stripped.folder, "--anchors", f"folder:{images}", "--out", view)
    assert f"{view}: 12 records" in result.output
    licences = ("--license=mit", "--source-license=mit")
    result = clsp_shards("push", view, tmp_path / "there", *licences)
    assert (result.exit_code, "is a view that holds no shard of its own" in result.output) == (
        1,
        True,
    )
    assert not (tmp_path / "there").exists()
    joined = open_set(view)
    save_hardness(joined, np.ones((12, 2), np.float32), "0" * 64, "a test's")
    assert load_hardness(open_set(view))[0].sum() == 24
    options = ("--anchors", f"folder:{images}", "--out", stripped.folder)
    assert "is not empty, and no joined view" in clsp_shards("join", view, *options).output
    after = {path: path.read_bytes() for path in stripped.folder.rglob("*") if path.is_file()}
    assert after == before


def reencode(path: Path) -> None:
    """Other bytes, the same pixels."""
    pixels = Image.open(path).convert("RGB")
    pixels.save(path.with_suffix(".png"), "PNG")
    path.unlink()
    path.with_suffix(".png").rename(path)


def change(path: Path) -> None:
    pixels = np.array(Image.open(path).convert("RGB"))
    pixels[0, 0, 0] ^= 1
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue())


def rename_and_reencode(path: Path) -> None:
    reencode(path)
    path.rename(path.with_name("elsewhere.jpg"))


@pytest.mark.parametrize(
    ("disturb", "kind"),
    [
        (lambda path: path.rename(path.with_name("elsewhere.jpg")), "renamed"),
        (reencode, "re-encoded"),
        (rename_and_reencode, "re-encoded"),
    ],
)
def test_an_anchor_that_moved_or_was_recoded_is_found(
    stripped: ShardSet, images: Path, tmp_path: Path, disturb: Callable[[Path], None], kind: str
) -> None:
    disturb(images / "3" / "003.jpg")
    options = ("--anchors", f"folder:{images}", "--out", tmp_path / "v")
    result = clsp_shards("join", stripped.folder, *options)
    assert result.exit_code == 0, result.output
    assert f"11 same, 1 {kind}" in result.output
    open_set(tmp_path / "v").verify()


@pytest.mark.parametrize(
    ("disturb", "kind"),
    [
        (Path.unlink, "missing"),
        (change, "wrong-version"),
        (lambda path: path.write_bytes(b"not an image"), "wrong-version"),
    ],
)
def test_less_than_all_anchors_is_a_failure_unless_allowed_by_name(
    stripped: ShardSet, images: Path, tmp_path: Path, disturb: Callable[[Path], None], kind: str
) -> None:
    disturb(images / "3" / "003.jpg")
    options = ("--anchors", f"folder:{images}", "--out", tmp_path / "v")
    result = clsp_shards("join", stripped.folder, *options)
    assert result.exit_code == 1
    assert f"1 of 12 anchors are {kind}, 3_003-" in result.output
    assert not (tmp_path / "v").exists()
    other = {"missing": "wrong-version", "wrong-version": "missing"}[kind]
    assert clsp_shards("join", stripped.folder, *options, "--allow", other).exit_code == 1
    assert clsp_shards("join", stripped.folder, *options, "--allow", kind).exit_code == 0
    joined = open_set(tmp_path / "v")
    joined.verify(deep=True)
    assert len(joined) == 11
    assert not [key for key in joined.keys if key.startswith("3_003")]
    for row in range(11):
        assert joined.record(row).key == joined.key(row)


def test_a_file_that_changes_after_joining_is_an_error(
    stripped: ShardSet, images: Path, tmp_path: Path
) -> None:
    clsp_shards("join", stripped.folder, "--anchors", f"folder:{images}", "--out", tmp_path / "v")
    change(images / "0" / "000.jpg")
    with pytest.raises(ShardError, match=r"0/000\.jpg is no longer the anchor of 0_000"):
        open_set(tmp_path / "v").pixels(0, ["anchor"])
    (images / "0" / "000.jpg").unlink()
    with pytest.raises(ShardError, match=r"has no 0/000\.jpg any more"):
        open_set(tmp_path / "v")


def test_a_view_of_another_set_is_refused(
    whole: ShardSet, stripped: ShardSet, images: Path, tmp_path: Path
) -> None:
    view = tmp_path / "v"
    clsp_shards("join", stripped.folder, "--anchors", f"folder:{images}", "--out", view)
    values = json.loads((view / "joined.json").read_text())
    for name, value, message in (
        ("set", str(whole.folder), f"is {whole.id[:12]}"),
        ("set", str(view), "is a joined view itself"),
        ("paths", values["paths"][:3], "pairs 3 records"),
        ("format", "other", "is no joined view"),
    ):
        (view / "joined.json").write_text(json.dumps({**values, name: value}))
        with pytest.raises(ShardError, match=message):
            open_set(view)


def test_a_set_with_anchors_has_nothing_to_join_and_one_without_nothing_to_strip(
    whole: ShardSet, stripped: ShardSet, tmp_path: Path
) -> None:
    result = clsp_shards("join", whole.folder, "--anchors", "digits", "--out", tmp_path / "v")
    assert "carries its anchors already" in result.output
    result = clsp_shards("strip", stripped.folder, tmp_path / "again")
    assert "carries no anchors already" in result.output


def test_records_that_do_not_say_their_anchor_cannot_be_joined(make_set, tmp_path: Path) -> None:
    shards = make_set(tmp_path / "set", sizes=(3,), anchors=False)
    with pytest.raises(ShardError, match="record digit-0000 does not say which its anchor is"):
        pair_anchors(shards, open_images("digits"))


def test_a_source_without_files_is_paired_by_pixels(tmp_path: Path, make_set) -> None:
    shards = make_set(tmp_path / "set", sizes=(9,))
    clsp_shards("strip", shards.folder, tmp_path / "stripped")
    pairing = pair_anchors(open_set(tmp_path / "stripped"), open_images("digits"))
    assert pairing.paths == tuple(f"digits/{n}" for n in range(9))
    assert set(pairing.kinds) == {"renamed"}  # these records have no path


def test_no_pair_is_ever_wrong(tmp_path: Path) -> None:
    """The short form of `python -m benchmarks.join`."""
    command = [sys.executable, "-m", "benchmarks.join", "--trials=150", f"--results={tmp_path}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    found = json.loads((tmp_path / "join.json").read_text())
    assert (found["wrong"], found["given up"]) == (0, 0)
    assert min(found[kind] for kind in ("renamed", "re-encoded", "wrong-version", "missing")) > 9
