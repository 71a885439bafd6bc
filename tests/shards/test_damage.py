"""Damage to a shard: every kind is an error, none is silent.

The same sweeps through stock webdataset show why this is needed: it stops quietly at a cut, and
passes over a damaged header.
"""

from __future__ import annotations

import io
import random
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import webdataset

from clsp.shards.check import BLOCK, ShardError, check_tar, walk
from clsp.shards.manifest import file_sha256
from clsp.shards.reader import ShardSet
from clsp.shards.store import index_folder, open_set

CUTS, FLIPS = 2000, 5000


@pytest.fixture(scope="module")
def shards(make_set, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Two shards of 5 and 4 records with 2 positives."""
    return make_set(tmp_path_factory.mktemp("damage") / "set", sizes=(5, 4))


@pytest.fixture
def copy(shards: ShardSet, tmp_path: Path) -> Path:
    shutil.copytree(shards.folder, tmp_path / "set")
    return tmp_path / "set"


def tar_of(folder: Path) -> Path:
    return folder / "data" / "train-00000.tar"


def is_silent(path: Path) -> bool:
    """True when the strict walk takes the shard for a whole one."""
    try:
        check_tar(path, 2, "png")
    except ShardError as error:
        return path.name not in str(error)  # an error that does not say where counts as silence
    return True


def cuts(size: int) -> Iterator[int]:
    yield from range(0, size, BLOCK)
    dice = random.Random(0)
    yield from (dice.randrange(size) for _ in range(CUTS))


def test_no_cut_is_silent(copy: Path) -> None:
    path = tar_of(copy)
    whole = path.read_bytes()
    assert is_silent(path)  # the control: undamaged
    for length in cuts(len(whole)):
        path.write_bytes(whole[:length])
        assert not is_silent(path), f"cut after {length} of {len(whole)} bytes"


def test_stock_webdataset_lets_cuts_pass(copy: Path) -> None:
    """The reason for a walk of our own: a cut shard is often just a shorter one to it."""
    path = tar_of(copy)
    whole = path.read_bytes()
    silent = 0
    for length in range(BLOCK, len(whole), BLOCK):
        path.write_bytes(whole[:length])
        try:
            silent += len(list(webdataset.WebDataset(str(path), shardshuffle=False))) < 5
        except Exception:  # any complaint will do
            continue
    assert silent > 0


def test_no_flipped_header_byte_is_silent(copy: Path) -> None:
    path = tar_of(copy)
    whole = path.read_bytes()
    headers = [member.offset - BLOCK for member in walk(path)]
    assert len(headers) == 5 * 4
    dice = random.Random(0)
    for position in (start + n for start in headers for n in range(BLOCK)):
        damaged = bytearray(whole)
        damaged[position] ^= dice.randrange(1, 256)
        path.write_bytes(damaged)
        assert not is_silent(path), f"byte {position} of a header"


def test_no_flipped_data_byte_is_silent(shards: ShardSet, copy: Path) -> None:
    """Without the manifest's hashes: each image against its record's JSON, and that parsed."""
    path = tar_of(copy)
    whole = path.read_bytes()
    contents = [range(m.offset, m.offset + m.size) for m in walk(path) if m.name[-4:] == ".png"]
    places = [position for content in contents for position in content]
    dice = random.Random(0)
    damaged_set = open_set(copy)
    by_offset = sorted((content.start, number // 3) for number, content in enumerate(contents))
    for _ in range(FLIPS):
        position = dice.choice(places)
        record = max(entry for entry in by_offset if entry[0] <= position)[1]
        with open(path, "r+b") as file:
            file.seek(position)
            file.write(bytes([whole[position] ^ dice.randrange(1, 256)]))
        with pytest.raises(ShardError, match=r"train-00000\.tar"):
            damaged_set.record(record)
        with open(path, "r+b") as file:
            file.seek(position)
            file.write(whole[position : position + 1])
    damaged_set.verify(deep=True)  # the control: all flips were undone


def test_any_flipped_byte_of_a_set_fails_its_verification(copy: Path) -> None:
    dice = random.Random(1)
    files = sorted((copy / "data").iterdir())
    for _ in range(200):
        path = dice.choice(files)
        whole = path.read_bytes()
        damaged = bytearray(whole)
        damaged[dice.randrange(len(whole))] ^= dice.randrange(1, 256)
        path.write_bytes(damaged)
        with pytest.raises(ShardError, match=path.name.replace(".", r"\.")):
            open_set(copy).verify()
        path.write_bytes(whole)
    open_set(copy).verify(deep=True)


def rebuilt(path: Path, change) -> None:
    """Write the tar again with its members changed by `change`, a function on the list."""
    with tarfile.open(path) as tar:
        found = [(m, tar.extractfile(m).read()) for m in tar.getmembers()]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, data in change(found):
            tar.addfile(member, io.BytesIO(data))
    data = path.read_bytes()  # tarfile pads to 10,240 bytes
    path.write_bytes(data.rstrip(b"\0") + bytes(-len(data.rstrip(b"\0")) % BLOCK + 2 * BLOCK))


def renamed(found, number: int, name: str):
    found[number][0].name = name
    return found


def typed(found, kind: bytes):
    found[0][0].type = kind
    found[0][0].linkname = "/etc/passwd"
    return found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f[:-1], "ends after 3 of 4 members"),
        (lambda f: f[:2] + f[3:], r"expected member digit-0000\.p1\.png"),
        (lambda f: [f[1], f[0], *f[2:]], r"expected member digit-0000\.anchor\.png"),
        (lambda f: f + f[:4], "digit-0000 comes twice"),
        (lambda f: renamed(f, 1, "../evil.png"), r"'\.\./evil\.png'"),
        (lambda f: renamed(f, 1, "digit-0000.p7.png"), r"found digit-0000\.p7\.png"),
        (lambda f: renamed(f, 1, "digit-0000.p0.exe"), "none of KEY"),
        (lambda f: typed(f, tarfile.SYMTYPE), "plain USTAR header of a regular file"),
        (lambda f: typed(f, tarfile.LNKTYPE), "plain USTAR header of a regular file"),
        (lambda f: [], "it holds no record"),
    ],
)
def test_a_tar_of_something_else_is_refused(copy: Path, change, message: str) -> None:
    path = tar_of(copy)
    rebuilt(path, lambda found: found)
    # tarfile copies owner and mode, so an unchanged rebuild is the same file: the control.
    assert is_silent(path)
    rebuilt(path, change)
    with pytest.raises(ShardError, match=message):
        check_tar(path, 2, "png")


def test_an_image_that_is_no_longer_its_records_is_refused_at_indexing(copy: Path) -> None:
    path = tar_of(copy)
    whole = bytearray(path.read_bytes())
    second = list(walk(path))[1]
    whole[second.offset + 30] ^= 1
    path.write_bytes(whole)
    (copy / "manifest.json").unlink()
    with pytest.raises(ShardError, match=r"train-00000\.tar: record digit-0000: p0 has sha256"):
        index_folder(copy)
    assert not (copy / "manifest.json").exists()


def test_data_behind_the_end_mark_is_refused(copy: Path) -> None:
    path = tar_of(copy)
    for extra in (b"x", bytes(BLOCK)):
        whole = path.read_bytes()
        path.write_bytes(whole + extra)
        with pytest.raises(ShardError, match="the end mark should be 1024 zero bytes"):
            check_tar(path, 2, "png")
        path.write_bytes(whole)


def test_a_manifest_that_was_edited_is_noticed(copy: Path) -> None:
    path = copy / "manifest.json"
    text = path.read_text()
    for before, after, message in (
        ('"samples": 9', '"samples": 8', "its shards hold 9 records, it says 8"),
        ("data/train-00000.tar", "../train-00000.tar", r"is not data/NAME\.tar"),
        ('"version": 1', '"version": 2', "format and version"),
        ('"image_format"', '"image_formats"', "is not a manifest"),
        ("{", "", "is not a manifest"),
    ):
        path.write_text(text.replace(before, after, 1))
        with pytest.raises(ShardError, match=message):
            open_set(copy)
    path.write_text(text)
    assert file_sha256(path) == open_set(copy).id
