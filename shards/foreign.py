"""A set of shards that another wrote: a WebDataset whose images are found by their members' names.

The tars stay as they are. `clsp shards index` writes an index and a manifest beside them, and from
then on such a set is read as clsp's own are: the index lists each record's members by clsp's names
with their sha256, `KEY.p0.png#sha256=...`, so that nothing damaged is trained on.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from .check import Member, ShardError
from .files import write_atomic
from .images import Pixels, decode_image, encode_image, fit_square, image_header
from .manifest import Manifest, Names, ShardFile, file_sha256, save_manifest
from .members import MARK, find_records, foreign_fields, foreign_index, parse_label, safe_key
from .order import hash_key
from .reader import Index, ShardSet
from .record import Record


def index_foreign(folder: Path, names: Names, image_size: int | None = None) -> ForeignSet:
    """Make a set of a folder whose data/*.tar another wrote: indexes and a manifest, no more.

    image_size: pixels a side that images get when they are read, from their centre square; None:
    all have the size of the first, a square. Keys that repeat from shard to shard get the shard's
    name. Raises ShardError; then nothing is written.
    """
    paths = _tars(folder)
    indexes, keys, formats, side = _look_at(paths, names, image_size)
    if len(set(keys)) < len(keys):
        names = replace(names, by_shard=True)
        indexes, keys, formats, side = _look_at(paths, names, image_size)
    shards = tuple(
        ShardFile(
            f"data/{path.name}",
            index.count(b"\n") - 1,
            path.stat().st_size,
            file_sha256(path),
            hashlib.sha256(index).hexdigest(),
        )
        for path, index in zip(paths, indexes, strict=True)
    )
    manifest = Manifest(
        positives=len(names.positives),
        image_format=formats.pop() if len(formats) == 1 else "png",
        image_size=side,
        samples=len(keys),
        shards=shards,
        names=names,
    )
    for path, index in zip(paths, indexes, strict=True):
        write_atomic(path.with_suffix(".idx"), index)
    save_manifest(folder, manifest)
    return ForeignSet(folder, manifest)


def _look_at(
    paths: Sequence[Path], names: Names, image_size: int | None
) -> tuple[list[bytes], list[int], set[str], int]:
    """Return the shards' indexes, the hash of every key, the formats of images, and their size."""
    indexes, keys = list[bytes](), list[int]()
    formats, side = set[str](), image_size or 0
    for path in paths:
        records = list(find_records(path, names))
        if not records:
            raise ShardError(f"shard {path.name}: it holds no record")
        for record in records:
            keys.append(hash_key(record.key))
            formats.update(record.formats)
            side = side or record.sizes[0][0]
            for name, size in zip(names.images, record.sizes, strict=True):
                if size == (side, side):
                    continue
                if image_size is None:
                    raise ShardError(
                        f"shard {path.name}, record {record.key}: {name} has {size[0]}x{size[1]} "
                        f"pixels, expected {side}x{side}; --image-size fits all images to one size"
                    )
                formats.add("png")  # what an image becomes that is fitted
        indexes.append(foreign_index(records, names))
    return indexes, keys, formats, side


def _tars(folder: Path) -> list[Path]:
    if (folder / "manifest.json").exists():
        raise ShardError(f"{folder} has a manifest.json already; `clsp shards verify` checks it")
    paths = sorted((folder / "data").glob("*.tar"))
    if not paths:
        hint = "; move or link the folder's own there" if any(folder.glob("*.tar")) else ""
        raise ShardError(f"{folder / 'data'} holds no .tar file{hint}")
    return paths


class ForeignSet(ShardSet):
    """The records of shards that another wrote. Images of another size are fitted when read.

    A record's JSON, which such shards lack, is made of its label and of the index's hashes.
    """

    @property
    def names(self) -> Names:
        """What the shards' members are called."""
        assert self.manifest.names is not None  # `store.make_reader` sees to it
        return self.manifest.names

    def _stored_fields(self) -> tuple[str, ...]:
        return foreign_fields(self.names)

    def index_of(self, path: Path) -> bytes:
        return foreign_index(list(find_records(path, self.names)), self.names)

    def read(self, index: int, wanted: Sequence[str] | None = None) -> dict[str, bytes]:
        names = (*self._images, "json") if wanted is None else wanted
        contents = super().read(index, [name for name in names if name != "json"])
        return {n: self._json(index) if n == "json" else contents[n] for n in names}

    def record(self, index: int) -> Record:
        """Return a record as clsp writes it; an image of another format or size is encoded anew."""
        record = super().record(index)
        assert record.anchor is not None
        anchor, *positives = map(self._fitted, (record.anchor, *record.positives))
        return replace(record, anchor=anchor, positives=tuple(positives))

    def pixels(self, index: int, wanted: Sequence[str]) -> np.ndarray:
        contents = self.read(index, wanted)
        try:
            self._check(index, contents)
            return np.stack([self._decoded(contents[name]) for name in wanted])
        except ValueError as error:
            place = f"shard {self._shard(index).name}, record {self.key(index)}"
            raise ShardError(f"{place}: {error}") from error

    def _json(self, index: int) -> bytes:
        digests = self._digests(index)
        hashes = {
            name: digests[32 * number : 32 * number + 32].hex()
            for number, name in enumerate(self._images)
        }
        values = {"sha256": hashes, **self._label(index)}
        return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()

    def _label(self, index: int) -> dict[str, int]:
        if not self.names.label:
            return {}
        data = super().read(index, ["label"])["label"]
        if hashlib.sha256(data).digest() != self._digests(index)[-32:]:
            raise ShardError(
                f"shard {self._shard(index).name}, record {self.key(index)}: the label's sha256 "
                "is not the index's"
            )
        return {"label": parse_label(data, self.names.label)}

    def _decoded(self, data: bytes) -> Pixels:
        image = Image.fromarray(decode_image(data))
        return np.asarray(fit_square(image, self.manifest.image_size))

    def _fitted(self, data: bytes) -> bytes:
        side = self.manifest.image_size
        if image_header(data) == (self.manifest.image_format, (side, side)):
            return data
        return encode_image(self._decoded(data), self.manifest.image_format)

    def _read_digests(self, index: int) -> bytes:
        number, row = self._place(index)
        size = 32 * len(self._fields)
        return self._index(number).digests[row * size : (row + 1) * size]

    def _parse_names(self, records: list[list[Member]], places: array[int]) -> Index:
        keys, digests = [], []
        for record in records:
            keys.append(record[0].name.partition(".")[0])
            for member in record:
                digest = bytes.fromhex(member.name.partition(MARK)[2])
                if safe_key(keys[-1]) != keys[-1] or len(digest) != 32:
                    raise ValueError(f"{member.name[:100]!r} is not KEY.FIELD.EXT{MARK}...")
                digests.append(digest)
        return Index(keys, places, b"".join(digests))
