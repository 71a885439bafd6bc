"""An image source by its spec, and the encoding of stored images. Needs no torch to import."""

from __future__ import annotations

import hashlib
import io
import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_NOT_IN_KEYS = re.compile(r"[^A-Za-z0-9_-]")
STORED_FORMATS = {"png": "PNG", "webp": "WEBP", "jpeg": "JPEG"}
_ENCODING: dict[str, dict[str, Any]] = {
    "png": {},
    "webp": {"lossless": True},
    "jpeg": {"quality": 95},
}
MOST_SIDE = 4096  # pixels of a stored image: checked before it is decoded

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Labels = np.ndarray[Any, np.dtype[np.int64]]


class ImageError(ValueError):
    """An image source or an image that cannot be used; the message names it."""


class ImageSource(Protocol):
    """Images in a fixed order, each with a key that stays the same when others come and go.

    labels: (N,) int64, or None; classes: their names, or None.
    """

    spec: str
    labels: Labels | None
    classes: tuple[str, ...] | None

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """Return the image's name in a shard set: no dot, at most 80 characters."""

    def path(self, index: int) -> str:
        """Return where in the source the image lies, as a relative path."""

    def read(self, index: int) -> Image.Image:
        """Return the image in mode RGB. Raises ImageError naming a file that cannot be read."""

    def file_sha256(self, index: int) -> str | None:
        """Return the sha256 of the image's file, or None where it has none of its own."""


def open_images(spec: str, *, download: bool = False) -> ImageSource:
    """Open an image source.

    spec: `digits[:train|:test]`, `folder:PATH`, `cifar10:ROOT[:train|:test]`,
    `cifar100:ROOT[:train|:test]`, or `stl10:ROOT[:train|:test|:unlabeled|:train+unlabeled]`.
    Raises ImageError for an unknown spec, and for a missing or empty source.
    """
    kind, _, rest = spec.partition(":")
    if kind == "digits":
        return _Digits(spec, rest)
    if kind == "folder":
        return _Folder(spec, Path(rest))
    if kind in _TORCHVISION:
        return _Torchvision(spec, kind, rest, download)
    raise ImageError(
        f"image source {spec!r} is none of digits, folder:PATH, cifar10:ROOT, cifar100:ROOT, "
        "stl10:ROOT"
    )


class _Digits:
    """scikit-learn's 1,797 digits of 8x8; every fifth one is the test part."""

    def __init__(self, spec: str, part: str) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        numbers = np.arange(len(digits.target))
        test = numbers % 5 == 4
        chosen = {"": numbers, "train": numbers[~test], "test": numbers[test]}.get(part)
        if chosen is None:
            raise ImageError(f"digits has the parts train and test, not {part!r}")
        self.spec, self._numbers = spec, chosen
        self._images = (digits.images[chosen] * 255 / 16).round().astype(np.uint8)
        self.labels: Labels | None = digits.target[chosen].astype(np.int64)
        self.classes: tuple[str, ...] | None = tuple("0123456789")

    def __len__(self) -> int:
        return len(self._numbers)

    def key(self, index: int) -> str:
        return f"digits-{self._numbers[index]:05d}"

    def path(self, index: int) -> str:
        return f"digits/{self._numbers[index]}"

    def read(self, index: int) -> Image.Image:
        return Image.fromarray(self._images[index]).convert("RGB")

    def file_sha256(self, index: int) -> None:
        return None


class _Strings(Sequence[str]):
    """Strings in two buffers: ten million paths as objects would take gigabytes."""

    def __init__(self, strings: Iterable[str]) -> None:
        self._bytes, self._ends = bytearray(), array("q", [0])
        data, ends = self._bytes, self._ends
        for string in strings:
            data += string.encode("utf-8", "surrogateescape")
            ends.append(len(data))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self._ends) - 1:
            raise IndexError(index)
        part = self._bytes[self._ends[index] : self._ends[index + 1]]
        return part.decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:  # twice as fast as by index
        for start, end in pairwise(self._ends):
            yield self._bytes[start:end].decode("utf-8", "surrogateescape")


def _walk(folder: str, prefix: str = "") -> Iterator[str]:
    """Yield the paths of the images below `folder` in sorted order, holding one folder's names.

    With a slash at their end, folders sort among files as the paths below them do.
    """
    with os.scandir(folder) as items:
        names = sorted(
            f"{item.name}/" if item.is_dir(follow_symlinks=False) else item.name
            for item in items
            if item.is_dir(follow_symlinks=False)
            or (os.path.splitext(item.name)[1].lower() in EXTENSIONS and item.is_file())
        )
    for name in names:
        if name.endswith("/"):
            yield from _walk(f"{folder}/{name[:-1]}", prefix + name)
        else:
            yield prefix + name


class _Folder:
    """Every image below a folder; labelled when each lies in one level of class folders."""

    def __init__(self, spec: str, root: Path) -> None:
        if not root.is_dir():
            raise ImageError(f"{root} is not a folder")
        self._paths = _Strings(_walk(str(root)))
        if not self._paths:
            raise ImageError(f"{root} holds no image ({' '.join(EXTENSIONS)})")
        self.spec, self._root = spec, root
        self.labels: Labels | None = None
        self.classes: tuple[str, ...] | None = None
        seen: dict[str, int] = {}
        labels = array("q")
        for path in self._paths:
            name, _, rest = path.partition("/")
            if not rest or "/" in rest:
                break
            labels.append(seen.setdefault(name, len(seen)))
        else:
            self.classes = tuple(sorted(seen))
            number = {name: label for label, name in enumerate(self.classes)}
            self.labels = np.array([number[name] for name in seen], np.int64)[np.asarray(labels)]

    def __len__(self) -> int:
        return len(self._paths)

    def key(self, index: int) -> str:
        # The hash keeps keys apart that differ in what is replaced, or only in their extension.
        path = self._paths[index]
        readable = _NOT_IN_KEYS.sub("_", path.rpartition(".")[0])[-64:]
        return f"{readable}-{hashlib.sha256(path.encode()).hexdigest()[:8]}"

    def path(self, index: int) -> str:
        return str(self._paths[index])

    def read(self, index: int) -> Image.Image:
        return read_image(self._root / self._paths[index])

    def file_sha256(self, index: int) -> str:
        return hashlib.sha256((self._root / self._paths[index]).read_bytes()).hexdigest()


# name: (torchvision class, its parts, how a part is asked for)
_TORCHVISION: dict[str, tuple[str, tuple[str, ...], Callable[[str], dict[str, Any]]]] = {
    "cifar10": ("CIFAR10", ("train", "test"), lambda part: {"train": part == "train"}),
    "cifar100": ("CIFAR100", ("train", "test"), lambda part: {"train": part == "train"}),
    "stl10": (
        "STL10",
        ("train", "test", "unlabeled", "train+unlabeled"),
        lambda part: {"split": part},
    ),
}


class _Torchvision:
    """A torchvision data set, all of whose pixels fit in memory."""

    def __init__(self, spec: str, kind: str, rest: str, download: bool) -> None:
        from torchvision import datasets

        name, parts, arguments = _TORCHVISION[kind]
        root, _, part = rest.rpartition(":")
        if not root:
            root, part = rest, "train"
        if not root or part not in parts:
            raise ImageError(f"{spec!r} should be {kind}:ROOT or {kind}:ROOT:PART, PART in {parts}")
        try:
            data = getattr(datasets, name)(root, download=download, **arguments(part))
        except RuntimeError as error:
            raise ImageError(f"{spec}: {error} (or --download, where online)") from error
        self.spec, self._prefix = spec, f"{kind}-{part.replace('+', '-')}"
        # STL-10 keeps its pixels channels first.
        self._images = data.data.transpose(0, 2, 3, 1) if kind == "stl10" else data.data
        labels = np.asarray(data.labels if kind == "stl10" else data.targets, np.int64)
        self.labels: Labels | None = labels if (labels >= 0).all() else None
        self.classes: tuple[str, ...] | None = None if self.labels is None else tuple(data.classes)

    def __len__(self) -> int:
        return len(self._images)

    def key(self, index: int) -> str:
        return f"{self._prefix}-{index:06d}"

    def path(self, index: int) -> str:
        return f"{self._prefix}/{index}"

    def read(self, index: int) -> Image.Image:
        return Image.fromarray(self._images[index])

    def file_sha256(self, index: int) -> None:
        return None


def read_image(path: Path) -> Image.Image:
    """Return an image file in mode RGB. Raises ImageError naming a file that cannot be read."""
    try:
        with Image.open(path) as image:
            image.load()
            return to_rgb(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path} cannot be read as an image: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any image to RGB: transparency over white, 16-bit grey scaled to 8 bits."""
    if image.mode.startswith("I;16"):
        high = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((high * 255 + 32767) // 65535).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def fit_square(image: Image.Image, size: int) -> Image.Image:
    """Return the centre square of `image` at `size` pixels a side; the same image if it fits."""
    if image.size == (size, size):
        return image
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Not `resize(box=...)`, whose filter also sees what lies outside the box.
    square = image.crop((left, top, left + side, top + side))
    return square.resize((size, size), Image.Resampling.LANCZOS)


def load_pixels(
    source: ImageSource, indices: Sequence[int] | None = None, size: int | None = None
) -> Pixels:
    """Read images into (N, S, S, 3) uint8.

    size: S; images of another size are cropped to their centre square and resized. None takes
    the first image's size, and raises ImageError for one that differs.
    """
    chosen = range(len(source)) if indices is None else indices
    if size is not None:
        square = (np.asarray(fit_square(source.read(index), size)) for index in chosen)
        return np.stack(list(square))
    images = [np.asarray(source.read(index)) for index in chosen]
    for index, image in zip(chosen, images, strict=True):
        if image.shape != images[0].shape:
            raise ImageError(
                f"{source.spec}: {source.path(index)} has {image.shape[1]}x{image.shape[0]}, "
                f"the first image {images[0].shape[1]}x{images[0].shape[0]}; give an image size"
            )
    return np.stack(images)


def encode_image(pixels: Pixels, image_format: str) -> bytes:
    """Encode (H, W, 3) uint8; the same pixels give the same bytes with the same Pillow.

    image_format: "png" and "webp" are lossless, "jpeg" has quality 95.
    """
    options = _ENCODING[image_format]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, STORED_FORMATS[image_format], **options)
    return buffer.getvalue()


def image_header(data: bytes) -> tuple[str, tuple[int, int]]:
    """Return a stored image's format and (width, height), without decoding it.

    Raises ImageError for anything but PNG, JPEG and WebP.
    """
    try:
        with Image.open(io.BytesIO(data), formats=tuple(STORED_FORMATS.values())) as image:
            kinds = {pillow: name for name, pillow in STORED_FORMATS.items()}
            return kinds[str(image.format)], image.size
    except Exception as error:  # as below
        raise ImageError(f"not a whole PNG, JPEG or WebP image: {error}") from error


def decode_image(data: bytes) -> Pixels:
    """Decode a stored image to (H, W, 3) uint8.

    Only PNG, JPEG and WebP, whatever a file calls itself, and only up to 4096x4096 pixels.
    Raises ImageError for anything else and for a truncated image.
    """
    try:
        with Image.open(io.BytesIO(data), formats=tuple(STORED_FORMATS.values())) as image:
            if max(image.size) > MOST_SIDE:
                raise ImageError(
                    f"image of {image.width}x{image.height} pixels is too large; at most "
                    f"{MOST_SIDE}x{MOST_SIDE} are allowed"
                )
            image.load()
            return np.asarray(to_rgb(image))
    except ImageError:
        raise
    # Of hostile bytes Pillow's readers raise whatever their parsing runs into.
    except Exception as error:
        raise ImageError(f"not a whole PNG, JPEG or WebP image: {error}") from error
