"""Small data sets in the on-disk layouts of the real ones: three classes, tiny images."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image
from scipy.io import savemat

from clsp.evaluate.datasets import VOC_CLASSES

SIDE = 12


def picture(label: int, number: int, side: int = SIDE) -> np.ndarray:
    """A picture that shows its class by where it is bright."""
    rng = np.random.default_rng([label, number])
    pixels = rng.integers(0, 90, (side, side, 3))
    band = slice(label * side // 3, (label + 1) * side // 3)
    pixels[band] += 150
    return pixels.astype(np.uint8)


def save(path: Path, label: int, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(label, number)).save(path, quality=95)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def accept_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are in the real layout, but cannot have the real data's checksums."""
    for module in (torchvision.datasets.cifar, torchvision.datasets.stl10):
        monkeypatch.setattr(module, "check_integrity", lambda *_: True)
    monkeypatch.setattr(torchvision.datasets.flowers102, "check_integrity", lambda *_: True)


def cifar(root: Path, hundred: bool = False) -> None:
    folder = root / ("cifar-100-python" if hundred else "cifar-10-batches-py")
    folder.mkdir()
    key, meta = ("fine_labels", "fine_label_names") if hundred else ("labels", "label_names")
    files = ["train", "test"] if hundred else [f"data_batch_{n}" for n in range(1, 6)]
    files += [] if hundred else ["test_batch"]
    for number, name in enumerate(files):
        labels = [n % 3 for n in range(30 if hundred else 6)]
        images = [picture(y, 100 * number + n, 32) for n, y in enumerate(labels)]
        rows = np.stack(images).transpose(0, 3, 1, 2).reshape(len(labels), -1)
        (folder / name).write_bytes(pickle.dumps({"data": rows, key: labels}))
    names = pickle.dumps({meta: ["low", "middle", "high"]})
    (folder / ("meta" if hundred else "batches.meta")).write_bytes(names)


def stl10(root: Path) -> None:
    folder = root / "stl10_binary"
    folder.mkdir()
    for number, part in enumerate(("train", "test")):
        labels = np.arange(12) % 3
        images = np.stack([picture(y, 50 * number + n, 96) for n, y in enumerate(labels)])
        images.transpose(0, 3, 2, 1).tofile(folder / f"{part}_X.bin")  # columns first
        (labels + 1).astype(np.uint8).tofile(folder / f"{part}_y.bin")
    write(folder / "class_names.txt", "low\nmiddle\nhigh\n")


def pets(root: Path) -> None:
    folder = root / "oxford-iiit-pet"
    for part, first in (("trainval", 0), ("test", 20)):
        lines = []
        for n in range(first, first + 12):
            name = f"{('Abyssinian', 'english_setter', 'Sphynx')[n % 3]}_{n}"
            save(folder / "images" / f"{name}.jpg", n % 3, n)
            lines.append(f"{name} {n % 3 + 1} {2 if n % 3 == 1 else 1} 1\n")
        write(folder / "annotations" / f"{part}.txt", "".join(lines))


def flowers(root: Path) -> None:
    """All 102 classes, because torchvision's class names them itself: one image a part each."""
    folder = root / "flowers-102"
    count = 3 * 102
    for n in range(count):
        save(folder / "jpg" / f"image_{n + 1:05d}.jpg", n % 3, n)
    savemat(folder / "imagelabels.mat", {"labels": np.arange(count) % 102 + 1})
    ids = np.arange(count).reshape(3, 102) + 1
    parts = zip(("trnid", "valid", "tstid"), ids, strict=True)
    savemat(folder / "setid.mat", dict(parts))


def dtd(root: Path) -> None:
    folder = root / "dtd" / "dtd"
    for number, part in enumerate(("train", "val", "test")):
        lines = []
        for n in range(9):
            name = f"{('banded', 'dotted', 'woven')[n % 3]}/{('banded', 'dotted', 'woven')[n % 3]}_"
            name += f"{number}{n:03d}.jpg"
            save(folder / "images" / name, n % 3, 100 * number + n)
            lines.append(name + "\n")
        write(folder / "labels" / f"{part}1.txt", "".join(lines))
        write(folder / "labels" / f"{part}2.txt", "".join(reversed(lines)))


def caltech101(root: Path) -> None:
    folder = root / "caltech101" / "101_ObjectCategories"
    for label, name in enumerate(("Faces", "accordion", "yin_yang", "BACKGROUND_Google")):
        for n in range(33 + label):
            save(folder / name / f"image_{n + 1:04d}.jpg", label % 3, n)


def food101(root: Path) -> None:
    folder = root / "food-101"
    for number, part in enumerate(("train", "test")):
        names: dict[str, list[str]] = {}
        for n in range(9):
            kind = ("baklava", "ramen", "waffles")[n % 3]
            names.setdefault(kind, []).append(f"{kind}/{number}{n:05d}")
            save(folder / "images" / f"{names[kind][-1]}.jpg", n % 3, 100 * number + n)
        write(folder / "meta" / f"{part}.json", json.dumps(names))


def cars(root: Path) -> None:
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    for number, (part, path) in enumerate(
        (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat"))
    ):
        kinds: list[Any] = [("bbox_x1", "u1"), ("bbox_y1", "u1"), ("bbox_x2", "u1")]
        kinds += [("bbox_y2", "u1"), ("class", "u1"), ("fname", "O")]
        rows = np.zeros((1, 9), kinds)
        for n in range(9):
            rows[0, n] = (1, 1, 9, 9, n % 3 + 1, f"{n + 1:05d}.jpg")
            save(folder / f"cars_{part}" / f"{n + 1:05d}.jpg", n % 3, 100 * number + n)
        savemat(folder / path, {"annotations": rows})
    names = np.array(["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "BMW X6"], object)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names})


def aircraft(root: Path) -> None:
    folder = root / "fgvc-aircraft-2013b" / "data"
    kinds = ("707-320", "DC-3", "F/A-18")
    write(folder / "variants.txt", "\n".join(kinds) + "\n")
    for number, part in enumerate(("train", "val", "test")):
        lines = []
        for n in range(9):
            name = f"{1000000 + 100 * number + n}"
            save(folder / "images" / f"{name}.jpg", n % 3, 100 * number + n)
            lines.append(f"{name} {kinds[n % 3]}\n")
        write(folder / f"images_variant_{part}.txt", "".join(lines))


def sun397(root: Path, each: int = 8, partition: bool = True) -> None:
    folder = root / "SUN397"
    kinds = ("/a/abbey", "/a/apse/indoor", "/z/zoo")
    write(folder / "ClassName.txt", "\n".join(kinds) + "\n")
    lines: tuple[list[str], list[str]] = ([], [])
    for label, kind in enumerate(kinds):
        for n in range(each):
            name = f"{kind}/sun_{label}{chr(97 + n % 26)}{n}.jpg"
            save(folder / name[1:], label, n)
            lines[n % 2].append(name + "\n")
    if partition:
        for part, names in zip(("Training", "Testing"), lines, strict=True):
            write(folder / f"{part}_01.txt", "".join(names))


def voc2007(root: Path) -> None:
    """Every class of the twenty in turn, and in every third image a difficult person too."""
    folder = root / "VOCdevkit" / "VOC2007"
    first = 0
    for part in ("train", "val", "test"):
        names = [f"{n + 1:06d}" for n in range(first, first + 40)]
        for n, name in enumerate(names):
            save(folder / "JPEGImages" / f"{name}.jpg", n % 3, first + n)
            things = [(VOC_CLASSES[n % 20], 0)] + [("person", 1)] * (n % 3 == 0)
            text = "".join(
                f"<object><name>{kind}</name><pose>Left</pose><difficult>{difficult}</difficult>"
                "<part><name>head</name></part></object>"
                for kind, difficult in things
            )
            write(folder / "Annotations" / f"{name}.xml", f"<annotation>{text}</annotation>")
        write(folder / "ImageSets" / "Main" / f"{part}.txt", "\n".join(names) + "\n")
        first += 40
