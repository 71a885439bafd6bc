"""Sets that others wrote, by stock webdataset's own writer, used where they lie."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from click.testing import CliRunner
from sklearn.datasets import load_digits

from clsp.shards.__main__ import main as shards_main
from clsp.shards.cache import Cache
from clsp.shards.check import ShardError
from clsp.shards.edit import subset
from clsp.shards.foreign import ForeignSet, index_foreign
from clsp.shards.images import decode_image, encode_image
from clsp.shards.manifest import Names, load_manifest, parse_manifest
from clsp.shards.remote import open_source
from clsp.shards.store import make_reader, open_set
from clsp.train.__main__ import main as train_main
from clsp.train.tuples import TupleBatches, decoded_set

NAMES = Names("jpg", ("syn0.png", "syn1.png"), "cls")
PIXELS = (load_digits().images * 255 / 16).round().astype(np.uint8)[..., None].repeat(3, axis=3)


def sample(n: int, **more: Any) -> dict[str, Any]:
    """A record as somebody has it: other names, a caption, a label, no hashes."""
    return {
        "__key__": f"photos/n01/im {n:03d}",
        "jpg": encode_image(PIXELS[n], "jpeg"),
        "syn0.png": encode_image(PIXELS[n + 1], "png"),
        "syn1.png": encode_image(PIXELS[n + 2], "png"),
        "cls": n % 10,
        "json": {"caption": "a digit", "label": n % 10},
        "txt": "extra",
        **more,
    }


def write(folder: Path, *shards: list[dict[str, Any]]) -> Path:
    (folder / "data").mkdir(parents=True)
    for number, samples in enumerate(shards):
        writer = webdataset.TarWriter(str(folder / "data" / f"part-{number:03d}.tar"))
        for one in samples:
            writer.write(one)
        writer.close()
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write(
        tmp_path_factory.mktemp("foreign") / "set",
        [sample(n) for n in range(7)],
        [sample(n) for n in range(7, 20)],
    )
    index_foreign(folder, NAMES)
    return folder


def run(main: Any, *arguments: str) -> str:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_records_come_back_by_the_names_given(folder: Path) -> None:
    shards = open_set(folder)
    assert isinstance(shards, ForeignSet)
    assert len(set(shards.keys)) == len(shards) == 20
    assert shards.key(3).startswith("photos_n01_im_003-")
    for n in range(20):
        found = shards.pixels(n, ["p1", "anchor", "p0"])
        jpeg = decode_image(encode_image(PIXELS[n], "jpeg"))
        np.testing.assert_array_equal(found, [PIXELS[n + 2], jpeg, PIXELS[n + 1]])
        record = shards.record(n)
        assert record.meta == {"label": n % 10}
        assert np.array_equal(decode_image(record.anchor), jpeg)
    assert parse_manifest((folder / "manifest.json").read_bytes()).names == NAMES


def test_stock_readers_still_read_it(folder: Path) -> None:
    url = str(folder / "data" / "part-001.tar")
    assert len(list(webdataset.WebDataset(url, shardshuffle=False))) == 13


def test_every_command_works_on_it(tmp_path: Path) -> None:
    place = write(tmp_path / "set", [sample(n) for n in range(12)], [sample(20), sample(21)])
    names = ["--anchor=JPG", "--positive=syn0.png", "--positive=syn1.png", "--label=json:label"]
    text = run(shards_main, "index", str(place), *names)
    assert "anchor jpg, positives syn0.png syn1.png, label json:label" in text
    assert "14 records in 2 shards" in run(shards_main, "verify", str(place), "--deep")
    for file in ("sheet.png", "gallery.html"):
        run(shards_main, "preview", str(place), f"--out={tmp_path / file}")
        assert (tmp_path / file).stat().st_size > 1000
    (place / "data/part-001.idx").unlink()
    assert "part-001.tar: repaired" in run(shards_main, "repair", str(place))
    flags = ["--arch=conv-tiny", "--hidden=16", "--dim=8", "--batch=7", "--epochs=1"]
    for method in ("simclr", "supcon"):
        flags += [f"--method={method}", "--positive=synthetic", f"--cache={tmp_path / 'cache'}"]
        run(train_main, f"--set={place}", f"--out={tmp_path / method}", *flags)
        assert (tmp_path / method / "encoder/encoder.safetensors").exists()


def test_training_sees_the_same_from_the_shards_and_from_the_cache(
    folder: Path, tmp_path: Path
) -> None:
    shards = open_set(folder)
    pixels = decoded_set(shards, tmp_path)
    cached, streamed = (
        TupleBatches(shards, 5, 0, positives=1, labels=True, pixels=p) for p in (pixels, None)
    )
    for step in range(8):
        a, b = cached[step], streamed[step]
        assert np.array_equal(a.anchor, b.anchor)
        assert np.array_equal(a.positives, b.positives)
        assert a.labels.tolist() == b.labels.tolist()


def test_it_is_read_from_afar_too(folder: Path, tmp_path: Path) -> None:
    cache = Cache(tmp_path, open_source(str(folder)), 10**9)
    shards = make_reader(cache, load_manifest(folder))
    names = ["anchor", "p0", "p1"]
    for n in (0, 19):
        np.testing.assert_array_equal(shards.pixels(n, names), open_set(folder).pixels(n, names))


def test_a_part_of_it_is_one_of_clsps_own_sets(folder: Path, tmp_path: Path) -> None:
    shards = open_set(folder)
    part = subset(shards, tmp_path / "part", per_class=1)
    assert type(part) is not ForeignSet
    part.verify(deep=True)
    rows = [shards.keys.index(key) for key in part.keys]
    for n, row in enumerate(rows):
        images = ["anchor", "p0", "p1"]
        np.testing.assert_array_equal(part.pixels(n, images), shards.pixels(row, images))


def test_images_of_all_sizes_are_fitted_when_a_size_is_given(tmp_path: Path) -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200  # the centre square
    samples = [sample(0), sample(1, jpg=encode_image(wide, "png"))]
    place = write(tmp_path / "set", samples)
    with pytest.raises(ShardError, match=r"jpg has 30x10 pixels, expected 8x8; --image-size"):
        index_foreign(place, NAMES)
    assert not list(place.glob("**/*.idx"))
    shards = index_foreign(place, NAMES, image_size=16)
    shards.verify(deep=True)
    assert shards.pixels(0, ["anchor", "p0"]).shape == (2, 16, 16, 3)
    assert (shards.pixels(1, ["anchor"]) == 200).all()
    record = shards.record(1)
    assert (record.image_format, decode_image(record.anchor).shape) == ("png", (16, 16, 3))


def test_keys_that_repeat_in_each_shard_are_told_apart(tmp_path: Path) -> None:
    shards = index_foreign(write(tmp_path / "set", [sample(0)], [sample(0)]), NAMES)
    assert len(set(shards.keys)) == 2
    open_set(shards.folder).verify(deep=True)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            Names("jpeg", ("syn0.png",)),
            r"part-000\.tar: no record has a member jpeg; the members found are cls \(2\), "
            r"jpg \(2\), json \(2\), syn0\.png \(2\), syn1\.png \(1\), txt \(2\)",
        ),
        (NAMES, r"record photos/n01/im 001 has no member syn1\.png; it has cls, jpg, json, syn0"),
        (Names("jpg", ("txt",)), r"part-000\.tar, record photos/n01/im 000: not a whole PNG"),
        (Names("jpg", ("syn0.png",), "txt"), "its txt holds no integer: b'extra'"),
        (Names("jpg", ("syn0.png",), "json:caption"), "its json says caption = 'a digit'"),
        (Names("jpg", ("syn0.png",), "json:class"), "its json:class holds no integer"),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused(tmp_path: Path, names: Names, message: str) -> None:
    second = sample(1)
    del second["syn1.png"]
    place = write(tmp_path / "set", [sample(0), second])
    with pytest.raises(ShardError, match=message):
        index_foreign(place, names)
    assert not (place / "manifest.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--anchor=jpg"], "need --anchor and at least one --positive"),
        (["--label=cls"], "need --anchor and at least one --positive"),
        (["--anchor=jpg", "--positive=jpg"], "members jpg, jpg: one comes twice"),
        (["--anchor=a b", "--positive=jpg"], "member 'a b' is not 1 to 80 of"),
        (["--anchor=jpg", "--positive=png", "--label=json:"], "is neither MEMBER nor MEMBER:FIELD"),
        (["--anchor=jpg", "--positive=png"], "holds no .tar file; move or link the folder's own"),
    ],
)
def test_arguments_that_make_no_mapping_are_refused(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "x.tar").touch()
    result = CliRunner().invoke(shards_main, ["index", str(tmp_path), *arguments])
    assert result.exit_code != 0
    assert message in result.output


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


def cut_behind_a_record(path: Path) -> None:
    with tarfile.open(path) as tar:
        last = tar.getmembers()[11]
    path.write_bytes(path.read_bytes()[: last.offset_data + 512 * -(-last.size // 512)])


def break_a_header(path: Path) -> None:
    with tarfile.open(path) as tar:
        at = tar.getmembers()[6].offset
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def pack(path: Path) -> None:
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("x"))


def say_twice(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for name in ("a.jpg", "b.jpg", "a.png"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"shard part-000\.tar"),
        (cut_behind_a_record, r"expected the end mark.*found nothing"),
        (break_a_header, r"expected the end mark.*found other bytes"),
        (pack, r"expected a tar, found gzip data.*has to be unpacked"),
        (say_twice, r"record a comes twice"),
        (lambda path: path.write_bytes(b""), r"expected a tar"),
    ],
)
def test_a_damaged_tar_is_never_a_shorter_set(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    place = write(tmp_path / "set", [sample(n) for n in range(3)])
    damage(place / "data/part-000.tar")
    with pytest.raises(ShardError, match=message):
        index_foreign(place, NAMES)


@pytest.mark.parametrize("field", ["anchor", "p1", "json"])
def test_a_byte_that_changed_is_found_when_it_is_read(
    folder: Path, tmp_path: Path, field: str
) -> None:
    shutil.copytree(folder, tmp_path / "set")
    shards = open_set(tmp_path / "set")
    number = {"anchor": 0, "p1": 2, "json": 3}[field]  # the JSON is made of the label
    at = shards._index(0).places[2 * number]
    path = shards.shard_path(shards.manifest.shards[0])
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    shards = open_set(tmp_path / "set")
    with pytest.raises(ShardError, match=r"part-000\.tar, record photos_n01_im_000-.*sha256"):
        shards.pixels(0, [field]) if field != "json" else shards.read(0, ["json"])
    with pytest.raises(ShardError):
        shards.verify()


def test_members_of_other_kinds_are_passed_over(tmp_path: Path) -> None:
    """Folders, links and webdataset's own members lie between those of records."""
    place = write(tmp_path / "set", [sample(0)])
    path = place / "data/part-000.tar"
    with tarfile.open(path, "a") as tar:
        for name, kind in (("d", tarfile.DIRTYPE), ("l.jpg", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "x"
            tar.addfile(info)
        for name in ("__meta__", "noextension", "__index__/x.jpg"):
            tar.addfile(tarfile.TarInfo(name))
    assert len(index_foreign(place, NAMES)) == 1


def test_its_index_is_dalis_format_with_its_own_extensions(folder: Path) -> None:
    header, *lines = (folder / "data/part-000.idx").read_text().splitlines()
    assert header == "v1.2 7"
    words = lines[0].split(" ")
    assert words[::4] == ["jpg", "syn0.png", "syn1.png", "cls"]
    assert words[3].partition("#sha256=")[0].endswith(".anchor.jpeg")
    with tarfile.open(folder / "data/part-000.tar") as tar:
        places = {m.offset_data: m.size for m in tar}
    assert all(places[int(o)] == int(s) for o, s in zip(words[1::4], words[2::4], strict=True))


def test_a_manifest_whose_names_do_not_fit_is_refused(folder: Path) -> None:
    values = json.loads((folder / "manifest.json").read_text())
    for names in ({"anchor": "jpg", "positives": ["a"]}, {"anchor": "/"}, [], {"anchor": 3}):
        with pytest.raises(ValueError, match=r"names|member|Error"):
            parse_manifest(json.dumps({**values, "names": names}).encode())


@pytest.mark.parametrize(("size", "kept"), [(8, True), (4, False)])
def test_a_size_that_all_images_have_leaves_their_bytes(
    tmp_path: Path, size: int, kept: bool
) -> None:
    jpegs = {name: encode_image(PIXELS[5], "jpeg") for name in ("syn0.png", "syn1.png")}
    samples = [{"__key__": "a", "jpg": encode_image(PIXELS[3], "jpeg"), **jpegs}]
    names = Names("jpg", ("syn0.png", "syn1.png"))
    shards = index_foreign(write(tmp_path / "set", samples), names, size)
    assert shards.manifest.image_format == ("jpeg" if kept else "png")
    assert (shards.record(0).anchor == samples[0]["jpg"]) == kept
    assert shards.pixels(0, ["anchor"]).shape == (1, size, size, 3)
