"""Random access to the records of a shard set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from .check import ShardError, check_tar, index_bytes, read_index
from .images import decode_image
from .manifest import Manifest, ShardFile, file_sha256
from .record import Record, check_hashes, fields, from_members, split_name


class ShardSet:
    """An opened shard set: record i is found by its number, shard by shard in manifest order.

    Make one with `store.open_set`, which checks that it is all there. It can be pickled and
    forked: file descriptors are opened by the process that reads.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self.shard_sizes = tuple(shard.samples for shard in manifest.shards)
        self._descriptors: dict[tuple[int, int], int] = {}  # (process, shard) -> descriptor

    def __len__(self) -> int:
        return self.manifest.samples

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_descriptors": {}}

    @property
    def id(self) -> str:
        """The set's id: the sha256 of its manifest."""
        return self.manifest.id

    @property
    def positives(self) -> int:
        """K, the number of positives of each record."""
        return self.manifest.positives

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0, *self.shard_sizes])

    @cached_property
    def _fields(self) -> tuple[str, ...]:
        manifest = self.manifest
        names = fields(manifest.positives, manifest.image_format, manifest.anchors)
        return tuple(name.partition(".")[0] for name in names)

    @cached_property
    def _index(self) -> tuple[list[str], np.ndarray]:
        """Keys (N,), and offset and size of every member, (N, members, 2) int64."""
        keys: list[str] = []
        places = np.empty((len(self), len(self._fields), 2), np.int64)
        for shard in self.manifest.shards:
            path = self.index_path(shard)
            records = read_index(path)
            if len(records) != shard.samples:
                raise ShardError(
                    f"index {path.name}: {len(records)} records, the manifest says {shard.samples}"
                )
            for record in records:
                if len(record) != len(self._fields):
                    raise ShardError(
                        f"index {path.name}: record {len(keys)} has {len(record)} members, "
                        f"expected {len(self._fields)}"
                    )
                places[len(keys)] = [(member.offset, member.size) for member in record]
                keys.append(split_name(record[0].name)[0])
        return keys, places

    def shard_path(self, shard: ShardFile) -> Path:
        """Return the path of a shard's tar."""
        return self.folder / shard.name

    def index_path(self, shard: ShardFile) -> Path:
        """Return the path of a shard's index."""
        return self.shard_path(shard).with_suffix(".idx")

    @property
    def keys(self) -> list[str]:
        """The key of every record, in order."""
        return self._index[0]

    def key(self, index: int) -> str:
        """Return the key of record `index`."""
        return self.keys[index]

    def read(self, index: int, wanted: Sequence[str] | None = None) -> dict[str, bytes]:
        """Return the content of a record's fields: "anchor", "p0" ..., "json"; all by default.

        Raises ShardError when the shard ends before the record does, IndexError and KeyError for
        a record or field that the set has not.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of a set of {len(self)}")
        number, shard = self._shard(index)
        descriptor = self._descriptor(number)
        contents: dict[str, bytes] = {}
        for name in self._fields if wanted is None else wanted:
            if name not in self._fields:
                raise KeyError(f"field {name!r}; a record of this set has {self._fields}")
            offset, size = map(int, self._index[1][index, self._fields.index(name)])
            contents[name] = os.pread(descriptor, size, offset)
            if len(contents[name]) != size:
                raise ShardError(
                    f"shard {shard.name}, byte {offset}: expected {size} "
                    f"bytes of {self.key(index)}.{name}, found {len(contents[name])}"
                )
        return contents

    def record(self, index: int) -> Record:
        """Return a whole record, every image compared with its hash.

        Raises ShardError naming the shard when they differ.
        """
        contents = self.read(index)
        try:
            return from_members(self.key(index), contents, self.manifest.image_format)
        except ValueError as error:
            raise ShardError(f"shard {self._shard(index)[1].name}: {error}") from error

    def pixels(self, index: int, wanted: Sequence[str]) -> np.ndarray:
        """Decode some images of a record, each compared with its hash; (V, H, W, 3) uint8.

        wanted: V of "anchor", "p0", "p1" ... Raises ShardError naming the shard and the record.
        """
        contents = self.read(index, [*wanted, "json"])
        place = f"shard {self._shard(index)[1].name}, record {self.key(index)}"
        side = self.manifest.image_size
        try:
            check_hashes(contents)
            images = [decode_image(contents[name]) for name in wanted]
        except ValueError as error:
            raise ShardError(f"{place}: {error}") from error
        for name, image in zip(wanted, images, strict=True):
            if image.shape != (side, side, 3):
                raise ShardError(
                    f"{place}: {name} has {image.shape[1]}x{image.shape[0]} pixels, the manifest "
                    f"says {side}x{side}"
                )
        return np.stack(images)

    def verify(self, deep: bool = False) -> None:
        """Compare every shard and index with the manifest's sizes and hashes.

        deep: also walk every tar, compare every image with its record's hash, and decode it.
        Raises ShardError at the first difference, naming shard, place, expected and found.
        """
        for shard in self.manifest.shards:
            self._verify_file(self.shard_path(shard), shard.sha256, shard.bytes)
            self._verify_file(self.index_path(shard), shard.idx_sha256, None)
            if deep:
                self._verify_content(shard)
        if len(set(self.keys)) != len(self):
            raise ShardError(f"{self.folder}: {len(self)} records have fewer different keys")

    def _verify_file(self, path: Path, sha256: str, size: int | None) -> None:
        found_size = path.stat().st_size
        if size is not None and found_size != size:
            raise ShardError(f"shard {path.name}: it has {found_size} bytes, expected {size}")
        found = file_sha256(path)
        if found != sha256:
            raise ShardError(f"{path.name}: its sha256 is {found}, the manifest says {sha256}")

    def _verify_content(self, shard: ShardFile) -> None:
        manifest, path = self.manifest, self.shard_path(shard)
        members = check_tar(path, manifest.positives, manifest.image_format, manifest.anchors)
        if index_bytes(members) != self.index_path(shard).read_bytes():
            raise ShardError(f"shard {path.name}: its index does not describe it")
        start = int(self._starts[manifest.shards.index(shard)])
        for index in range(start, start + shard.samples):
            self.pixels(index, self._fields[:-1])

    def _shard(self, index: int) -> tuple[int, ShardFile]:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return number, self.manifest.shards[number]

    def _descriptor(self, number: int) -> int:
        place = (os.getpid(), number)
        if place not in self._descriptors:
            path = self.shard_path(self.manifest.shards[number])
            self._descriptors[place] = os.open(path, os.O_RDONLY)
        return self._descriptors[place]
