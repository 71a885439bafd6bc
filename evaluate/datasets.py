"""The data sets of transfer learning: usual splits and metrics, read by torchvision's classes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from ..shards.images import ImageError, ImageSource, Labels, open_images, read_image

# fmt: off
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)
# fmt: on


@dataclass(frozen=True)
class Task:
    """A data set to probe on.

    train, validation, test: its parts; without a validation part one is drawn from `train`.
    metric: a name in METRICS; split: in words, which parts these are.
    """

    train: ImageSource
    validation: ImageSource | None
    test: ImageSource
    metric: str
    split: str


class _Files:
    """Image files with labels, (N,) or for several labels an image (N, C): an ImageSource."""

    def __init__(
        self, spec: str, paths: Sequence[Path], labels: Labels, classes: Sequence[str]
    ) -> None:
        self.spec, self._paths = spec, paths
        self.labels: Labels | None = labels
        self.classes: tuple[str, ...] | None = tuple(classes)

    def __len__(self) -> int:
        return len(self._paths)

    def key(self, index: int) -> str:
        return f"{self.spec.replace(':', '-')}-{index:06d}"

    def path(self, index: int) -> str:
        return str(self._paths[index])

    def read(self, index: int) -> Image.Image:
        return read_image(self._paths[index])

    def file_sha256(self, index: int) -> str:
        return hashlib.sha256(self._paths[index].read_bytes()).hexdigest()

    def select(self, rows: Sequence[int], part: str) -> _Files:
        assert self.labels is not None
        assert self.classes is not None
        chosen = [self._paths[row] for row in rows]
        return _Files(f"{self.spec}:{part}", chosen, self.labels[np.asarray(rows)], self.classes)


@dataclass(frozen=True)
class _DataSet:
    """folder: below the root; open_: (root, seed, download) -> train, validation or None, test."""

    folder: str
    metric: str
    split: str
    open_: Callable[[Path, int, bool], tuple[ImageSource, ImageSource | None, ImageSource, str]]


def _small(kind: str) -> Callable[..., Any]:
    """CIFAR and STL-10, which are image sources already."""

    def open_(root: Path, seed: int, download: bool) -> Any:
        train, test = (
            open_images(f"{kind}:{root}:{part}", download=download) for part in ("train", "test")
        )
        return train, None, test, ""

    return open_


def _listed(kind: str, root: Path, download: bool, settings: Mapping[str, Any]) -> _Files:
    """The files, labels and classes that a torchvision class finds, in its order."""
    from torchvision import datasets

    try:
        # Its address is gone: torchvision refuses to download it, even when it is there.
        download = download and kind != "StanfordCars"
        data = getattr(datasets, kind)(root, download=download, **settings)
    except (RuntimeError, OSError) as error:
        raise ImageError(f"{kind} in {root}: {error}") from error
    spec = ":".join([kind, *map(str, settings.values())])
    if kind == "VOCDetection":
        return _Files(spec, _paths(data.images), _voc_labels(data.annotations), VOC_CLASSES)
    if kind == "Caltech101":
        folder = Path(data.root) / "101_ObjectCategories"
        names = zip(data.y, data.index, strict=True)
        paths = [folder / data.categories[y] / f"image_{n:04d}.jpg" for y, n in names]
        return _Files(spec, paths, np.array(data.y, np.int64), data.categories)
    if kind == "StanfordCars":
        samples = data._samples
    else:
        files = data._images if kind == "OxfordIIITPet" else data._image_files
        samples = list(zip(files, data._labels, strict=True))
    labels = np.array([label for _, label in samples], np.int64)
    return _Files(spec, _paths([path for path, _ in samples]), labels, data.classes)


def _paths(paths: Sequence[str | Path]) -> list[Path]:
    return [Path(path) for path in paths]


def _voc_labels(annotations: Sequence[str]) -> Labels:
    """(N, 20): 1 where an object of the class is there, -1 where all such objects are difficult."""
    labels = np.zeros((len(annotations), len(VOC_CLASSES)), np.int64)
    for row, path in enumerate(annotations):
        for thing in ElementTree.parse(path).getroot().iter("object"):
            column = VOC_CLASSES.index(thing.findtext("name", ""))
            if thing.findtext("difficult") != "1":
                labels[row, column] = 1
            elif labels[row, column] == 0:
                labels[row, column] = -1
    return labels


def _parts(
    kind: str,
    train: Mapping[str, Any],
    test: Mapping[str, Any],
    validation: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """A data set whose parts are settings of its torchvision class."""

    def open_(root: Path, seed: int, download: bool) -> Any:
        found = [
            None if part is None else _listed(kind, root, download, part)
            for part in (train, validation, test)
        ]
        return *found, ""

    return open_


def draw_split(
    labels: np.ndarray, train: int, test: int | None, seed: int
) -> tuple[list[int], list[int]]:
    """Return the rows of two parts: so many of each class, by seed; test None: all others.

    Raises ValueError for a class with too few images for one of each part.
    """
    rng = np.random.default_rng(seed)
    parts: tuple[list[int], list[int]] = ([], [])
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        if len(rows) <= train:
            raise ValueError(
                f"class {label} has {len(rows)} images, and its split takes {train} to train"
            )
        last = None if test is None else train + test
        parts[0].extend(rows[:train].tolist())
        parts[1].extend(rows[train:last].tolist())
    return sorted(parts[0]), sorted(parts[1])


def _caltech(root: Path, seed: int, download: bool) -> Any:
    if not download and not (root / "caltech101").is_dir():  # torchvision would make the folder
        raise ImageError(f"Caltech101 in {root}: no folder caltech101")
    found = _listed("Caltech101", root, download, {})
    assert found.labels is not None
    train, test = draw_split(found.labels, 30, None, seed)
    return (
        found.select(train, f"train-{seed}"),
        None,
        found.select(test, f"test-{seed}"),
        f"drawn with seed {seed}",
    )


def _sun(root: Path, seed: int, download: bool) -> Any:
    found = _listed("SUN397", root, download, {})
    # torchvision lists them in the file system's order.
    order = sorted(range(len(found)), key=found.path)
    found = found.select(order, "all")
    assert found.labels is not None
    base = root / "SUN397"
    folders = [f for f in (base, base / "Partitions") if (f / "Training_01.txt").is_file()]
    if not folders:
        train, test = draw_split(found.labels, 50, 50, seed)
        words = f"no partition file there: 50 + 50 a class, drawn with seed {seed}"
        names = (f"train-{seed}", f"test-{seed}")
    else:
        row_of = {found.path(row): row for row in range(len(found))}
        train, test = (
            [_row(row_of, base, line) for line in (folders[0] / f"{name}_01.txt").open()]
            for name in ("Training", "Testing")
        )
        words, names = "partition 1", ("train-01", "test-01")
    return found.select(train, names[0]), None, found.select(test, names[1]), words


def _row(row_of: Mapping[str, int], base: Path, line: str) -> int:
    path = str(base / line.strip().lstrip("/"))
    if path not in row_of:
        raise ImageError(f"SUN397's partition names {line.strip()}, which is not in {base}")
    return row_of[path]


_VOC = {part: {"year": "2007", "image_set": part} for part in ("train", "val", "test")}
_SPLIT = {part: {"split": part} for part in ("train", "val", "trainval", "test")}
_TWO = "as published; validation drawn from train"
_THREE = "train, validation and test as published"

DATA_SETS: dict[str, _DataSet] = {
    "cifar10": _DataSet("cifar-10-batches-py", "accuracy", _TWO, _small("cifar10")),
    "cifar100": _DataSet("cifar-100-python", "accuracy", _TWO, _small("cifar100")),
    "stl10": _DataSet("stl10_binary", "accuracy", _TWO, _small("stl10")),
    "pets": _DataSet(
        "oxford-iiit-pet",
        "mean per class",
        _TWO,
        _parts("OxfordIIITPet", _SPLIT["trainval"], _SPLIT["test"]),
    ),
    "flowers": _DataSet(
        "flowers-102",
        "mean per class",
        _THREE,
        _parts("Flowers102", _SPLIT["train"], _SPLIT["test"], _SPLIT["val"]),
    ),
    "dtd": _DataSet(
        "dtd",
        "accuracy",
        f"partition 1: {_THREE}",
        _parts("DTD", _SPLIT["train"], _SPLIT["test"], _SPLIT["val"]),
    ),
    "caltech101": _DataSet(
        "caltech101",
        "mean per class",
        "30 a class to train and all others to test, without the background class",
        _caltech,
    ),
    "food101": _DataSet(
        "food-101", "accuracy", _TWO, _parts("Food101", _SPLIT["train"], _SPLIT["test"])
    ),
    "cars": _DataSet(
        "stanford_cars", "accuracy", _TWO, _parts("StanfordCars", _SPLIT["train"], _SPLIT["test"])
    ),
    "aircraft": _DataSet(
        "fgvc-aircraft-2013b",
        "mean per class",
        f"variants; {_THREE}",
        _parts("FGVCAircraft", _SPLIT["train"], _SPLIT["test"], _SPLIT["val"]),
    ),
    "sun397": _DataSet("SUN397", "accuracy", "", _sun),
    "voc2007": _DataSet(
        "VOCdevkit/VOC2007",
        "mAP",
        f"{_THREE}; difficult objects left out",
        _parts("VOCDetection", _VOC["train"], _VOC["test"], _VOC["val"]),
    ),
}


def there(root: Path) -> list[str]:
    """Return the names of the data sets that have a folder below `root`."""
    return [name for name, data in DATA_SETS.items() if (root / data.folder).is_dir()]


def open_task(name: str, root: Path, *, seed: int = 0, download: bool = False) -> Task:
    """Open a data set below `root`, in the layout in which torchvision keeps it.

    name: one of DATA_SETS; seed: of the splits that are drawn.
    Raises ValueError for an unknown name, for what is not there or not whole, and when a part has
    other classes than the others.

    Kornblith et al., 2019, arXiv:1805.08974, table 1, has these splits and metrics.
    """
    if name not in DATA_SETS:
        raise ValueError(f"data set {name!r} is none of {', '.join(DATA_SETS)}")
    data = DATA_SETS[name]
    train, validation, test, drawn = data.open_(root, seed, download)
    for part in (validation, test):
        if part is not None and part.classes != train.classes:
            raise ValueError(f"{name}: {part.spec} has other classes than {train.spec}")
    split = "; ".join(words for words in (data.split, drawn) if words)
    return Task(train, validation, test, data.metric, split)
