"""Opening, indexing and describing sets, and the command line that does it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from clsp.shards import download
from clsp.shards.__main__ import main
from clsp.shards.card import prepare_to_share
from clsp.shards.check import ShardError
from clsp.shards.files import sweep_temporaries, temporary_name, write_atomic
from clsp.shards.images import encode_image
from clsp.shards.manifest import save_manifest
from clsp.shards.preview import preview_png
from clsp.shards.reader import ShardSet
from clsp.shards.record import Record, members
from clsp.shards.store import index_folder, open_set
from clsp.shards.writer import write_shard

from .faults import FaultServer


def clsp_shards(*arguments: object):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_info_says_what_a_set_is(digit_set: ShardSet) -> None:
    text = clsp_shards("info", digit_set.folder).output
    for part in (digit_set.id, "40 in 3 shards", "anchor, 2 positives, json", "png, 8x8"):
        assert part in text
    assert "picture   none; `clsp shards preview` makes one" in text


def test_verify_passes_a_whole_set_and_names_damage(make_set, tmp_path: Path) -> None:
    shards = make_set(tmp_path / "set")
    for deep in ([], ["--deep"]):
        result = clsp_shards("verify", shards.folder, *deep)
        assert (result.exit_code, "40 records in 3 shards are whole" in result.output) == (0, True)
    path = shards.folder / "data" / "train-00002.tar"
    data = bytearray(path.read_bytes())
    data[-600] ^= 1
    path.write_bytes(data)
    result = clsp_shards("verify", shards.folder)
    assert result.exit_code == 1
    assert "train-00002.tar: its sha256 is" in result.output


def test_index_makes_the_same_set_again(make_set, tmp_path: Path) -> None:
    shards = make_set(tmp_path / "set")
    before = {path.name: path.read_bytes() for path in (shards.folder / "data").iterdir()}
    (shards.folder / "manifest.json").unlink()
    for path in (shards.folder / "data").glob("*.idx"):
        path.unlink()
    result = clsp_shards("index", shards.folder)
    assert result.exit_code == 0
    assert shards.id in result.output
    assert {p.name: p.read_bytes() for p in (shards.folder / "data").iterdir()} == before
    again = clsp_shards("index", shards.folder)
    assert again.exit_code == 1
    assert "has a manifest.json already" in again.output


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "data/train-00001.tar").unlink(), r"train-00001\.tar is missing"),
        (lambda d: (d / "data/train-00001.idx").unlink(), r"train-00001\.idx is missing"),
        (lambda d: (d / "manifest.json").unlink(), r"has no manifest\.json"),
        (
            lambda d: (d / "data/train-00001.tar").write_bytes(b"x"),
            r"train-00001\.tar: it has 1 bytes, expected",
        ),
        (
            lambda d: (d / "data/train-00001.idx").write_text("v1.2 19\n"),
            r"index train-00001\.idx",
        ),
    ],
)
def test_a_set_that_is_not_whole_is_refused(make_set, tmp_path: Path, damage, message: str) -> None:
    shards = make_set(tmp_path / "set")
    damage(shards.folder)
    with pytest.raises(ShardError, match=message):
        open_set(shards.folder).keys  # noqa: B018


def test_info_and_verify_take_an_address(
    make_set, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shards = make_set(tmp_path / "set", sizes=(4, 3))
    prepare_to_share(shards, "Digits", license="mit", source_license="cc0-1.0")
    with FaultServer(shards.folder) as server:
        text = clsp_shards("info", server.address).output
        assert set(server.requests) == {"manifest.json", "SHA256SUMS", "README.md", "preview.png"}
        for part in (shards.id, "mit; of the source: cc0-1.0", f"{server.address}/preview.png"):
            assert part in text
        result = clsp_shards("verify", "--deep", server.address)
        assert f"{server.address}: 7 records in 2 shards are whole" in result.output
    (shards.folder / "README.md").unlink()
    path = shards.folder / "data" / "train-00001.tar"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cold"))
    monkeypatch.setattr(download, "FIRST_PAUSE", 0.001)
    with FaultServer(shards.folder) as server:
        assert "unknown; of the source: unknown" in clsp_shards("info", server.address).output
        result = clsp_shards("verify", server.address)
        assert (result.exit_code, "train-00001.tar: the bytes that" in result.output) == (1, True)


def test_what_a_stranger_wrote_cannot_paint_the_screen(make_set, tmp_path: Path) -> None:
    shards = make_set(tmp_path / "set", sizes=(4,))
    save_manifest(shards.folder, replace(shards.manifest, classes=("cat\x1b[2J", "dög\n")))
    os.mkfifo(shards.folder / "README.md")  # nor make it wait for ever
    text = clsp_shards("info", shards.folder).output
    assert "cat\\x1b[2J, dög\\n" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("address", ["nowhere", "s3://bucket/set", "https://host/set"])
def test_an_address_that_cannot_be_opened_is_refused(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "FIRST_PAUSE", 0.001)
    result = clsp_shards("info", address)
    assert result.exit_code == 1
    assert address.partition("//")[0] in result.output


def test_an_empty_folder_cannot_be_indexed(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"holds no \.tar file"):
        index_folder(tmp_path)


@pytest.fixture
def record() -> Record:
    import numpy as np

    png = encode_image(np.zeros((8, 8, 3), np.uint8), "png")
    return Record("a", png, (png, png))


def test_a_writer_that_raises_leaves_nothing(record: Record, tmp_path: Path) -> None:
    def records():
        yield record
        raise RuntimeError("the model broke")

    with pytest.raises(RuntimeError, match="the model broke"):
        write_shard(tmp_path / "train-00000.tar", records(), 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("records", "positives", "message"),
    [
        (lambda r: [r], 3, "record a has 2 positives, expected 3"),
        (lambda r: [r, r], 2, "record a comes twice"),
        (lambda r: [], 2, "no record to write"),
    ],
)
def test_records_that_do_not_fit_are_refused(
    record: Record, tmp_path: Path, records, positives: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_shard(tmp_path / "train-00000.tar", records(record), positives)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [200, 3000])
def test_a_full_disk_leaves_nothing(tmp_path: Path, limit: int) -> None:
    """A limit on file size stands for the full disk; 200 bytes are not enough for the index."""
    script = (
        "import resource, signal, sys, numpy as np; from pathlib import Path\n"
        "from clsp.shards.images import encode_image\n"
        "from clsp.shards.record import Record; from clsp.shards.writer import write_shard\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "png = encode_image(np.zeros((8, 8, 3), np.uint8), 'png')\n"
        "records = [Record(str(n), png, (png,)) for n in range(9)]\n"
        "try: write_shard(Path(sys.argv[1]) / 'a.tar', records, 1)\n"
        "except OSError as error: print(error)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "File too large" in result.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "x" * 81, "ü"])
def test_a_key_that_others_could_not_read_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="is not 1 to 80 of"):
        Record(key, b"", (b"",))


def test_a_record_without_an_anchor_has_none(record: Record) -> None:
    names = [name for name, _ in members(Record("a", None, record.positives))]
    assert names == ["a.p0.png", "a.p1.png", "a.json"]


def test_a_file_is_replaced_as_a_whole_and_leftovers_are_swept(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    temporary_name(path).write_bytes(b"half")
    assert sweep_temporaries(tmp_path) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_file_that_another_writer_swept_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when two ranks finish the same set at once."""
    replace, sweeps = os.replace, [1, 1]

    def swept(source: Path, target: Path) -> None:
        if sweeps:
            assert sweep_temporaries(tmp_path) == sweeps.pop()
        replace(source, target)

    monkeypatch.setattr(os, "replace", swept)
    write_atomic(tmp_path / "file", b"one")
    assert sweeps == []
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"file": b"one"}
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "nowhere" / "file", b"one")


def test_a_preview_shows_anchors_and_positives(digit_set: ShardSet) -> None:
    import io

    import numpy as np
    from PIL import Image

    sheet = np.asarray(Image.open(io.BytesIO(preview_png(digit_set, samples=3))))
    anchor = digit_set.pixels(0, ["anchor"])[0].repeat(6, axis=0).repeat(6, axis=1)
    positive = digit_set.pixels(0, ["p0"])[0].repeat(6, axis=0).repeat(6, axis=1)
    np.testing.assert_array_equal(sheet[4:52, 4:52], anchor)
    np.testing.assert_array_equal(sheet[4:52, 64:112], positive)
