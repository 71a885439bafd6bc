"""Sets from and to what others use: .npy, a folder per anchor, Parquet, any WebDataset."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from .check import ShardError
from .edit import write_set
from .files import new_folder, write_atomic
from .foreign import index_foreign
from .images import ImageSource, decode_image, encode_image, fit_square
from .manifest import Manifest, Names
from .reader import ShardSet
from .record import Record, check_hashes, fields

SHARD_SIZE = 1000


def import_npy(
    path: Path, out: Path, source: ImageSource, shard_size: int = SHARD_SIZE
) -> ShardSet:
    """Write a set of an array (N, K, H, W, 3) uint8 whose row i is of the source's image i.

    Raises ShardError for another shape or type, and for another number of images.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise ShardError(f"{path} is no plain array: {error}") from error
    if array.dtype != np.uint8 or array.ndim != 5 or array.shape[4] != 3:
        raise ShardError(f"{path} is {array.dtype} {array.shape}, expected uint8 (N, K, H, W, 3)")
    if array.shape[2] != array.shape[3] or len(array) != len(source):
        raise ShardError(
            f"{path} has {len(array)} rows of {array.shape[2]}x{array.shape[3]} images, "
            f"{source.spec} {len(source)} images; expected as many, and squares"
        )
    side = array.shape[2]

    def records() -> Iterator[Record]:
        for index in range(len(source)):
            anchor = np.asarray(fit_square(source.read(index), side))
            meta: dict[str, Any] = {
                "source": source.path(index),
                "source_sha256": source.file_sha256(index),
            }
            if source.labels is not None:
                meta["label"] = int(source.labels[index])
            positives = tuple(encode_image(np.asarray(image), "png") for image in array[index])
            yield Record(source.key(index), encode_image(anchor, "png"), positives, meta)

    like = _manifest(array.shape[1], "png", side, True, source.classes)
    return write_set(out, like, _parts(records(), shard_size), f"import {path.name}")


def export_npy(shards: ShardSet, path: Path) -> None:
    """Write positives as an array (N, K, H, W, 3) uint8, in the set's order, and keys beside it."""
    names = [f"p{number}" for number in range(shards.positives)]
    side = shards.manifest.image_size
    shape = (len(shards), len(names), side, side, 3)
    temporary = path.with_name(f".{path.name}.tmp")
    array = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
    for row in range(len(shards)):
        array[row] = shards.pixels(row, names)
    array.flush()
    os.replace(temporary, path)
    keys = "".join(f"{key}\n" for key in shards.keys)
    write_atomic(path.with_suffix(".keys.txt"), keys.encode())


def export_folders(shards: ShardSet, out: Path) -> None:
    """Write OUT/KEY/anchor.png, p0.png ... and record.json; the files are the set's own bytes.

    OUT/classes.json holds the names of the labels. Raises FileExistsError when `out` holds
    something.
    """
    suffix = shards.manifest.image_format
    with new_folder(out) as new:
        for row in range(len(shards)):
            record = shards.record(row)
            folder = new / record.key
            folder.mkdir()
            if record.anchor is not None:
                (folder / f"anchor.{suffix}").write_bytes(record.anchor)
            for number, image in enumerate(record.positives):
                (folder / f"p{number}.{suffix}").write_bytes(image)
            (folder / "record.json").write_text(json.dumps(record.meta, sort_keys=True) + "\n")
        if shards.manifest.classes:
            (new / "classes.json").write_text(json.dumps(shards.manifest.classes) + "\n")


def import_folders(path: Path, out: Path, shard_size: int = SHARD_SIZE) -> ShardSet:
    """Write a set of PATH/KEY/anchor.EXT, p0.EXT ... and, where there are, record.json.

    All folders have the same files, all images one format and size. PATH/classes.json, if it is
    there, names the labels. Raises ShardError else.
    """
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir())
    if not folders:
        raise ShardError(f"{path} holds no folder of an anchor")
    images = [file for file in folders[0].iterdir() if file.name != "record.json"]
    suffixes = {file.suffix.lstrip(".") for file in images}
    if len(suffixes) != 1:
        raise ShardError(f"{folders[0]} has files of the kinds {sorted(suffixes)}, expected one")
    suffix, anchors = suffixes.pop(), any(file.stem == "anchor" for file in images)
    positives = len(images) - anchors
    expected = fields(positives, suffix, anchors)[:-1]

    def records() -> Iterator[Record]:
        for folder in folders:
            found = {file.name for file in folder.iterdir()} - {"record.json"}
            if found != set(expected):
                raise ShardError(f"{folder} has {sorted(found)}, expected {list(expected)}")
            contents = [(folder / name).read_bytes() for name in expected]
            meta_file = folder / "record.json"
            meta = json.loads(meta_file.read_bytes()) if meta_file.exists() else {}
            anchor, *rest = contents if anchors else [None, *contents]
            yield Record(folder.name, anchor, tuple(d for d in rest if d is not None), meta, suffix)

    names = path / "classes.json"
    classes = tuple(json.loads(names.read_bytes())) if names.exists() else None
    side = decode_image((folders[0] / expected[0]).read_bytes()).shape[0]
    like = _manifest(positives, suffix, side, anchors, classes)
    return write_set(out, like, _parts(records(), shard_size), f"import {path.name}")


def import_webdataset(
    path: Path,
    out: Path,
    names: Names,
    image_size: int | None = None,
    shard_size: int = SHARD_SIZE,
) -> ShardSet:
    """Write a set of the records in a tar, or in a folder's tars, that another wrote.

    names: what their members are called. Images keep their bytes, unless they are of several
    formats or `image_size` asks for another size: then all are PNG. Raises ShardError as
    `index_foreign` does, and when PATH holds no tar.
    """
    tars = [path] if path.is_file() else sorted([*path.glob("*.tar"), *path.glob("data/*.tar")])
    if not tars:
        raise ShardError(f"{path} holds no .tar file, nor does {path / 'data'}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        # Links under names that clsp's shards may have; the tars are read where they lie.
        (Path(scratch) / "data").mkdir()
        for number, tar in enumerate(tars):
            (Path(scratch) / "data" / f"{number:05d}.tar").symlink_to(tar.resolve())
        shards = index_foreign(Path(scratch), names, image_size)
        records = map(shards.record, range(len(shards)))
        return write_set(out, shards.manifest, _parts(records, shard_size), f"import {path.name}")


def export_parquet(shards: ShardSet, path: Path) -> None:
    """Write a Parquet file as `datasets` writes it: columns key, anchor, p0 ..., and json.

    Of a set that names its classes, also label, of the type ClassLabel. Images are of the type that
    the Hub shows, with the set's own bytes. Memory does not grow with the set. Needs the extra
    [parquet].
    """
    datasets = _datasets()
    names = [*(["anchor"] * shards.manifest.anchors), *(f"p{n}" for n in range(shards.positives))]
    text, image = datasets.Value("string"), datasets.Image()
    features = datasets.Features({"key": text, **dict.fromkeys(names, image), "json": text})
    if shards.manifest.classes:
        features["label"] = datasets.ClassLabel(names=list(shards.manifest.classes))

    def rows() -> Iterator[dict[str, Any]]:
        for row in range(len(shards)):
            contents = shards.read(row)
            meta, _ = check_hashes(contents)
            images = {name: {"bytes": contents[name], "path": None} for name in names}
            values = {"key": shards.key(row), **images, "json": contents["json"].decode()}
            yield {**values, "label": meta.get("label")} if "label" in features else values

    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
        data = datasets.Dataset.from_generator(
            rows, features=features, cache_dir=scratch, fingerprint=shards.id[:16]
        )
        data.to_parquet(f"{scratch}/new.parquet")
        os.replace(f"{scratch}/new.parquet", path)


def import_parquet(path: Path, out: Path, shard_size: int = SHARD_SIZE) -> ShardSet:
    """Write a set of a Parquet file with the columns that `export_parquet` writes."""
    datasets = _datasets()
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path)
    columns = file.schema_arrow.names
    positives = sum(1 for name in columns if name[0] == "p" and name[1:].isdigit())
    if not positives or not {"key", "json"} <= set(columns) or not file.metadata.num_rows:
        raise ShardError(
            f"{path} has {file.metadata.num_rows} rows of the columns {columns}, expected some of "
            "key, p0 ..., json"
        )
    with_anchors = "anchor" in columns
    label = datasets.Features.from_arrow_schema(file.schema_arrow).get("label")
    classes = tuple(label.names) if isinstance(label, datasets.ClassLabel) else None
    first = next(file.iter_batches(1, columns=["p0"])).to_pylist()[0]["p0"]["bytes"]
    suffix, shown = _format_of(first), decode_image(first)

    def records() -> Iterator[Record]:
        for row in chain.from_iterable(batch.to_pylist() for batch in file.iter_batches(256)):
            meta = json.loads(row["json"])
            meta.pop("sha256", None)
            anchor = row["anchor"]["bytes"] if with_anchors else None
            images = tuple(row[f"p{number}"]["bytes"] for number in range(positives))
            yield Record(row["key"], anchor, images, meta, suffix)

    like = _manifest(positives, suffix, shown.shape[0], with_anchors, classes)
    return write_set(out, like, _parts(records(), shard_size), f"import {path.name}")


def _format_of(data: bytes) -> str:
    if data.startswith(b"\x89PNG"):
        return "png"
    return "webp" if data[8:12] == b"WEBP" else "jpeg"


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ShardError("Parquet needs `datasets`: pip install 'clsp[parquet]'") from error
    return datasets


def _parts(records: Iterable[Record], size: int) -> Iterator[list[Record]]:
    part: list[Record] = []
    for record in records:
        part.append(record)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


def _manifest(
    positives: int, image_format: str, side: int, anchors: bool, classes: tuple[str, ...] | None
) -> Manifest:
    return Manifest(positives, image_format, side, 0, (), anchors, classes=classes)
