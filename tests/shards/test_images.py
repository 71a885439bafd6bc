"""Image sources in the layouts that others write, and images of every kind."""

from __future__ import annotations

import hashlib
import io
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image
from sklearn.datasets import load_digits

from clsp.shards.images import (
    ImageError,
    decode_image,
    encode_image,
    fit_square,
    load_pixels,
    open_images,
    to_rgb,
)

RNG = np.random.default_rng(0)


def save(path: Path, pixels: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)


def colours(count: int = 1, size: int = 8) -> np.ndarray:
    return RNG.integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_digits_are_scikit_learns_and_split_in_two() -> None:
    whole, train, test = (open_images(f"digits{part}") for part in ("", ":train", ":test"))
    assert (len(whole), len(train), len(test)) == (1797, 1438, 359)
    keys = [{s.key(n) for n in range(len(s))} for s in (whole, train, test)]
    assert keys[0] == keys[1] | keys[2]
    assert not keys[1] & keys[2]
    expected = (load_digits().images[4] * 255 / 16).round()
    np.testing.assert_array_equal(np.asarray(test.read(0))[..., 0], expected)
    assert test.labels[0] == load_digits().target[4]


def test_a_folder_is_sorted_and_labelled_by_its_class_folders(tmp_path: Path) -> None:
    images = colours(4)
    for name, pixels in zip(("cat/b.png", "cat/a.png", "dog/a.png", "ant/z.png"), images):  # noqa: B905
        save(tmp_path / name, pixels)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    source = open_images(f"folder:{tmp_path}")
    assert [source.path(n) for n in range(4)] == [
        "ant/z.png",
        "cat/a.png",
        "cat/b.png",
        "dog/a.png",
    ]
    assert source.classes == ("ant", "cat", "dog")
    assert source.labels.tolist() == [0, 1, 1, 2]
    np.testing.assert_array_equal(np.asarray(source.read(1)), images[1])
    expected = hashlib.sha256((tmp_path / "cat/a.png").read_bytes()).hexdigest()
    assert source.file_sha256(1) == expected


@pytest.mark.parametrize("names", [["a.png", "b.png"], ["x/a.png", "b.png"], ["x/y/a.png"]])
def test_other_folders_have_no_labels(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        save(tmp_path / name, colours()[0])
    source = open_images(f"folder:{tmp_path}")
    assert (source.labels, source.classes) == (None, None)
    assert len(source) == len(names)


def test_paths_come_in_the_order_of_their_names_however_deep(tmp_path: Path) -> None:
    """The walk sorts one folder at a time; that must be the order of the whole list."""
    names = ["a/z.png", "a-b/c.png", "a.png", "a/b-c.png", "a/b/c.png", "a0/x.png", "é/1.png"]
    names.append("Z.PNG")
    for name in [*names, "a/notes.txt", ".png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(tmp_path / name, "PNG")
    (tmp_path / "linked").symlink_to(tmp_path / "a")
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    source = open_images(f"folder:{tmp_path}")
    paths = [source.path(index) for index in range(len(source))]
    assert paths == sorted([*names, "link.png"])


def test_keys_are_distinct_and_do_not_move(tmp_path: Path) -> None:
    names = ["a b.png", "a_b.png", "a.b.png", "a_b.jpg", "ä/ß.png", "x" * 120 + ".png"]
    for name in names:
        save(tmp_path / name, colours()[0])
    source = open_images(f"folder:{tmp_path}")
    before = {source.path(n): source.key(n) for n in range(len(source))}
    assert len(set(before.values())) == len(names)
    assert all(len(key) <= 80 and "." not in key and key.isascii() for key in before.values())
    save(tmp_path / "0.png", colours()[0])
    again = open_images(f"folder:{tmp_path}")
    assert {again.path(n): again.key(n) for n in range(1, len(again))} == before


@pytest.mark.parametrize("broken", ["cut", "empty", "text"])
def test_an_unreadable_image_is_named(tmp_path: Path, broken: str) -> None:
    save(tmp_path / "good.png", colours(size=32)[0])
    data = (tmp_path / "good.png").read_bytes()
    content = {"cut": data[: len(data) // 2], "empty": b"", "text": b"hello"}[broken]
    (tmp_path / "zbad.png").write_bytes(content)
    source = open_images(f"folder:{tmp_path}")
    source.read(0)
    with pytest.raises(ImageError, match=r"zbad\.png cannot be read as an image"):
        source.read(1)


def test_images_of_every_mode_become_rgb() -> None:
    pixels = colours()[0]
    image = Image.fromarray(pixels)
    grey = np.asarray(to_rgb(image.convert("L")))
    assert (grey == grey[..., :1]).all()
    palette = image.quantize(200)
    np.testing.assert_array_equal(np.asarray(to_rgb(palette)), np.asarray(palette.convert("RGB")))
    assert to_rgb(image.convert("CMYK")).mode == "RGB"
    assert np.asarray(to_rgb(image.convert("1"))).max() == 255
    deep = Image.fromarray((np.arange(64, dtype=np.uint16) * 1040).reshape(8, 8))
    assert np.asarray(to_rgb(deep))[-1, -1].tolist() == [255] * 3  # 16 bits are scaled, not cut


def test_transparency_shows_white() -> None:
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:4] = (200, 100, 50, 255)
    rgba[6:] = (0, 0, 0, 128)
    found = np.asarray(to_rgb(Image.fromarray(rgba)))
    assert found[0, 0].tolist() == [200, 100, 50]
    assert found[4, 0].tolist() == [255, 255, 255]
    assert found[7, 0].tolist() == pytest.approx([127] * 3, abs=1)
    palette = Image.fromarray(rgba[..., :3]).quantize(4)
    palette.info["transparency"] = palette.getpixel((0, 7))
    assert np.asarray(to_rgb(palette))[7, 0].tolist() == [255] * 3


@pytest.mark.parametrize("size", [(10, 6), (6, 10), (8, 8)])
def test_other_sizes_give_their_centre_square(size: tuple[int, int]) -> None:
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    top, left = (size[1] - min(size)) // 2, (size[0] - min(size)) // 2
    pixels[top : top + min(size), left : left + min(size)] = 255
    found = np.asarray(fit_square(Image.fromarray(pixels), 8))
    assert found.shape == (8, 8, 3)
    assert found.min() == 255


def test_sizes_that_differ_need_a_size(tmp_path: Path) -> None:
    save(tmp_path / "a.png", colours(size=8)[0])
    save(tmp_path / "b.png", colours(size=9)[0])
    source = open_images(f"folder:{tmp_path}")
    with pytest.raises(ImageError, match=r"b\.png has 9x9, the first image 8x8"):
        load_pixels(source)
    assert load_pixels(source, size=4).shape == (2, 4, 4, 3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mnist:x", "none of digits, folder:PATH"),
        ("digits:valid", "parts train and test, not 'valid'"),
        ("folder:/no/such", "/no/such is not a folder"),
        ("cifar10", "should be cifar10:ROOT"),
        ("cifar10:/no/such:valid", "not found|should be"),
        ("stl10:/no/such", r"stl10:/no/such: .*--download"),
    ],
)
def test_a_source_that_is_not_there_is_refused(spec: str, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        open_images(spec)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="holds no image"):
        open_images(f"folder:{tmp_path}")


def write_cifar(root: Path, kind: str, images: np.ndarray, labels: list[int]) -> None:
    """The python version of CIFAR as it is distributed: pickled dicts of rows."""
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    if kind == "cifar10":
        folder, files = root / "cifar-10-batches-py", [f"data_batch_{n}" for n in range(1, 6)]
        content = {"data": rows, "labels": labels}
        meta = ("batches.meta", {"label_names": [f"class {n}" for n in range(10)]})
        test = "test_batch"
    else:
        folder, files = root / "cifar-100-python", ["train"]
        content = {"data": rows, "fine_labels": labels}
        meta = ("meta", {"fine_label_names": [f"class {n}" for n in range(100)]})
        test = "test"
    folder.mkdir(parents=True)
    for name, values in (*((f, content) for f in [*files, test]), meta):
        (folder / name).write_bytes(pickle.dumps(values))


def accept_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are in the real layout, but cannot have the real data's checksums."""
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda _: True)
    monkeypatch.setattr(torchvision.datasets.STL10, "_check_integrity", lambda _: True)


@pytest.mark.parametrize(("kind", "train"), [("cifar10", 15), ("cifar100", 3)])
def test_cifar_is_read_by_torchvision(
    kind: str, train: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept_checksums(monkeypatch)
    images = colours(3, 32)
    write_cifar(tmp_path, kind, images, [3, 1, 2])
    for part, count in (("", train), (":test", 3)):
        source = open_images(f"{kind}:{tmp_path}{part}")
        assert len(source) == count
        np.testing.assert_array_equal(np.asarray(source.read(1)), images[1])
        assert source.labels[:3].tolist() == [3, 1, 2]
        assert source.classes[3] == "class 3"
    assert source.key(2) == f"{kind}-test-000002"


def test_stl10_is_read_by_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accept_checksums(monkeypatch)
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    images = colours(2, 96)
    for part in ("train", "test", "unlabeled"):
        # Columns first, as the data set is stored.
        images.transpose(0, 3, 2, 1).tofile(folder / f"{part}_X.bin")
        np.array([4, 10], np.uint8).tofile(folder / f"{part}_y.bin")  # 1..10
    (folder / "class_names.txt").write_text("\n".join(f"class {n}" for n in range(10)) + "\n")
    source = open_images(f"stl10:{tmp_path}:test")
    np.testing.assert_array_equal(np.asarray(source.read(1)), images[1])
    assert source.labels.tolist() == [3, 9]
    unlabelled = open_images(f"stl10:{tmp_path}:unlabeled")
    assert (len(unlabelled), unlabelled.labels) == (2, None)
    both = open_images(f"stl10:{tmp_path}:train+unlabeled")
    assert (len(both), both.labels) == (4, None)
    assert both.key(0) == "stl10-train-unlabeled-000000"


@pytest.mark.parametrize("image_format", ["png", "webp", "jpeg"])
def test_encoding_is_deterministic_and_lossless_where_it_says_so(image_format: str) -> None:
    pixels = (load_digits().images[7] * 15).astype(np.uint8)[..., None].repeat(3, axis=2)
    data = encode_image(pixels, image_format)
    assert data == encode_image(pixels, image_format)
    if image_format == "jpeg":
        assert abs(decode_image(data).astype(int) - pixels).mean() < 4
    else:
        np.testing.assert_array_equal(decode_image(data), pixels)


def gif() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "GIF")
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG whose header promises 2^31 pixels."""
    data = bytearray(encode_image(np.zeros((8, 8, 3), np.uint8), "png"))
    import struct
    import zlib

    data[16:24] = struct.pack(">II", 65536, 32768)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


@pytest.mark.parametrize(
    "data", [b"", b"junk", gif(), bomb()], ids=["empty", "junk", "gif", "bomb"]
)
def test_stored_images_of_another_kind_are_refused(data: bytes) -> None:
    with pytest.raises(ImageError):
        decode_image(data)


def test_shards_imports_no_torch() -> None:
    """Neither at import, nor when a set is opened."""
    script = (
        "import sys, pkgutil, importlib, clsp.shards\n"
        "for m in pkgutil.iter_modules(clsp.shards.__path__):\n"
        "    importlib.import_module('clsp.shards.' + m.name)\n"
        "assert not {'torch', 'torchvision', 'diffusers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
