"""Random access to the records of a shard set."""

from __future__ import annotations

import hashlib
import os
import re
from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from .cache import Cache, Prefetch, shards_ahead
from .check import Member, ShardError, check_tar, index_bytes, read_index
from .images import decode_image
from .manifest import Manifest, ShardFile, file_sha256
from .order import hash_key
from .record import Record, check_hashes, fields, from_members, parse_json, split_name
from .remote import FolderSource, Source

# What a reader keeps, whatever the set's size: indexes of about twice an epoch's block of shuffled
# samples, far fewer open files than a process may have, and about 16 MiB of images' hashes, so that
# of a small set each record's JSON is read once and not once an epoch.
_MOST_INDEXED, _MOST_OPEN, _MOST_HASHED = 1 << 19, 256, 1 << 19
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TRIES = 5  # to open a file of the cache before others have deleted it

Value = TypeVar("Value")


class Index(NamedTuple):
    """A shard's index: the key of each record, and each member's offset and size, in order.

    digests: of a shard that another wrote, the sha256 of each member, 32 bytes each.
    """

    keys: list[str]
    places: array[int]
    digests: bytes = b""


class ShardSet:
    """An opened shard set: record i is found by its number, shard by shard in manifest order.

    Make one with `store.open_set`, which checks that it is all there. A shard's index is read when
    a record of it is first asked for, so opening costs no more than the manifest. It can be
    pickled, forked and read by many threads.
    """

    def __init__(self, place: Path | Cache, manifest: Manifest) -> None:
        """place: the set's folder, or the cache through which it is read from afar."""
        self.place, self.manifest = place, manifest
        self._prefetch: Prefetch | None = None
        self.shard_sizes = tuple(shard.samples for shard in manifest.shards)
        self._starts = [0, *accumulate(self.shard_sizes)]
        self._fields = self._stored_fields()
        self._position = {name: number for number, name in enumerate(self._fields)}
        self._images = tuple(name for name in self._fields if name == "anchor" or name[0] == "p")
        self._forget()

    def _stored_fields(self) -> tuple[str, ...]:
        """The fields of a record in the order of its index."""
        manifest = self.manifest
        names = fields(manifest.positives, manifest.image_format, manifest.anchors)
        return tuple(name.partition(".")[0] for name in names)

    def _forget(self) -> None:
        indexes = max(1, _MOST_INDEXED * len(self.shard_sizes) // max(1, len(self)))
        self._index = lru_cache(indexes)(self._read_index)
        self._file = lru_cache(_MOST_OPEN)(self._open_file)
        self._digests = lru_cache(_MOST_HASHED // len(self._fields))(self._read_digests)

    def __len__(self) -> int:
        return self.manifest.samples

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_index": None, "_file": None, "_digests": None, "_prefetch": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    @property
    def id(self) -> str:
        """The set's id: the sha256 of its manifest."""
        return self.manifest.id

    @property
    def positives(self) -> int:
        """K, the number of positives of each record."""
        return self.manifest.positives

    @property
    def folder(self) -> Path:
        """The set's folder. Raises ShardError for a set that is read from afar."""
        if isinstance(self.place, Cache):
            raise ShardError(f"{self.address} is not on this machine; `clsp shards pull` brings it")
        return self.place

    @property
    def origin(self) -> Source:
        """Where the set's files are read from, the shards' through the cache."""
        return self.place.source if isinstance(self.place, Cache) else FolderSource(self.place)

    @property
    def address(self) -> str:
        """Where the set is, for people."""
        return self.origin.address

    @property
    def is_remote(self) -> bool:
        """True for a set that is read from afar, shard by shard as records are asked for."""
        return isinstance(self.place, Cache)

    def shard_path(self, shard: ShardFile) -> Path:
        """Return the path of a shard's tar, fetched if need be."""
        if isinstance(self.place, Path):
            return self.place / shard.name
        path = self.place.get(shard.name, shard.sha256, shard.bytes)
        assert path is not None  # it waits
        return path

    def index_path(self, shard: ShardFile) -> Path:
        """Return the path of a shard's index, fetched if need be."""
        if isinstance(self.place, Path):
            return self.place / shard.index_name
        path = self.place.get(
            shard.index_name, shard.idx_sha256, shard.most_index_bytes, exact=False
        )
        assert path is not None
        return path

    def prefetch(self, order: Sequence[int]) -> None:
        """Begin to fetch shards in this order, ahead of the reader; nothing for a local set.

        order: numbers of shards, in the order in which they will be read.
        """
        if self._prefetch is not None:
            self._prefetch.stop()
        if isinstance(self.place, Cache):
            largest = max(shard.bytes for shard in self.manifest.shards)
            ahead = shards_ahead(largest, self.place.limit)
            self._prefetch = Prefetch(self._fetch, order, ahead)

    def _fetch(self, number: int) -> None:
        shard = self.manifest.shards[number]
        self.index_path(shard)
        assert isinstance(self.place, Cache)
        self.place.get(shard.name, shard.sha256, shard.bytes, wait=False)

    def shard_keys(self, number: int) -> list[str]:
        """Return the keys of the records of shard `number`, in order."""
        return self._index(number).keys

    @property
    def keys(self) -> list[str]:
        """The key of every record, in order; of a large set, ask for `key` or `shard_keys`."""
        return [key for number in range(len(self.shard_sizes)) for key in self.shard_keys(number)]

    def key(self, index: int) -> str:
        """Return the key of record `index`."""
        number, row = self._place(index)
        return self._index(number).keys[row]

    def read(self, index: int, wanted: Sequence[str] | None = None) -> dict[str, bytes]:
        """Return the content of a record's fields: "anchor", "p0" ..., "json"; all by default.

        Raises ShardError when the shard ends before the record does, IndexError and KeyError for
        a record or field that the set has not.
        """
        number, row = self._place(index)
        places = self._index(number).places
        descriptor = self._file(number).descriptor
        contents: dict[str, bytes] = {}
        for name in self._fields if wanted is None else wanted:
            if name not in self._position:
                raise KeyError(f"field {name!r}; a record of this set has {self._fields}")
            at = 2 * (row * len(self._fields) + self._position[name])
            offset, size = places[at], places[at + 1]
            data = contents[name] = os.pread(descriptor, size, offset)
            if len(data) != size:
                raise ShardError(
                    f"shard {self.manifest.shards[number].name}, byte {offset}: expected {size} "
                    f"bytes of {self.key(index)}.{name}, found {len(data)}"
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
            raise ShardError(f"shard {self._shard(index).name}: {error}") from error

    def pixels(self, index: int, wanted: Sequence[str]) -> np.ndarray:
        """Decode some images of a record, each compared with its hash; (V, H, W, 3) uint8.

        wanted: V of "anchor", "p0", "p1" ... Raises ShardError naming the shard and the record.
        """
        contents = self.read(index, wanted)
        place = f"shard {self._shard(index).name}, record {self.key(index)}"
        side = self.manifest.image_size
        try:
            self._check(index, contents)
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

    def _check(self, index: int, images: dict[str, bytes]) -> None:
        """Raise ValueError naming an image that differs from its hash."""
        known = self._digests(index)
        for name, data in images.items():
            at = 32 * self._position[name]
            if hashlib.sha256(data).digest() != known[at : at + 32]:
                check_hashes({**images, "json": self.read(index, ["json"])["json"]})

    def _read_digests(self, index: int) -> bytes:
        """The sha256 of each image of a record, 32 bytes each; zeros where its JSON has none."""
        hashes = parse_json(self.read(index, ["json"])["json"])[1]
        digests = b""
        for name in self._images:
            text = hashes.get(name)
            known = isinstance(text, str) and _SHA256.fullmatch(text) is not None
            digests += bytes.fromhex(str(text)) if known else bytes(32)
        return digests

    def verify(self, deep: bool = False) -> None:
        """Compare every shard and index with the manifest's sizes and hashes.

        deep: also walk every tar, compare every image with its record's hash, and decode it.
        Raises ShardError at the first difference, naming shard, place, expected and found.
        """
        for number, shard in enumerate(self.manifest.shards):
            if deep:  # The walk comes first: it ends at once in a hostile terabyte of nothing.
                self._verify_structure(number)
            self._verify_file(self.shard_path(shard), shard.sha256, shard.bytes)
            self._verify_file(self.index_path(shard), shard.idx_sha256, None)
            if deep:
                for index in range(self._starts[number], self._starts[number + 1]):
                    self.pixels(index, self._images)
        self._verify_keys()

    def _verify_keys(self) -> None:
        hashes = np.empty(len(self), np.uint64)  # 8 bytes a record: text would take ten times that
        for number, start in enumerate(self._starts[:-1]):
            keys = self.shard_keys(number)
            hashes[start : start + len(keys)] = [hash_key(key) for key in keys]
        if len(np.unique(hashes)) != len(self):
            raise ShardError(f"{self.address}: {len(self)} records have fewer different keys")

    def _verify_file(self, path: Path, sha256: str, size: int | None) -> None:
        found_size = path.stat().st_size
        if size is not None and found_size != size:
            raise ShardError(f"shard {path.name}: it has {found_size} bytes, expected {size}")
        found = file_sha256(path)
        if found != sha256:
            raise ShardError(f"{path.name}: its sha256 is {found}, the manifest says {sha256}")

    def _verify_structure(self, number: int) -> None:
        shard = self.manifest.shards[number]
        path = self.shard_path(shard)
        expected = self.index_of(path)
        self._index(number)  # refuses an index that is too large to be read
        if expected != self.index_path(shard).read_bytes():
            raise ShardError(f"shard {path.name}: its index does not describe it")

    def index_of(self, path: Path) -> bytes:
        """Return the index that a shard of this set must have. Raises ShardError for damage."""
        manifest = self.manifest
        return index_bytes(
            check_tar(path, manifest.positives, manifest.image_format, manifest.anchors)
        )

    def _place(self, index: int) -> tuple[int, int]:
        """Return in which shard record `index` is, and which of that shard's records it is."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of a set of {len(self)}")
        number = bisect_right(self._starts, index) - 1
        return number, index - self._starts[number]

    def _shard(self, index: int) -> ShardFile:
        return self.manifest.shards[self._place(index)[0]]

    def _read_index(self, number: int) -> Index:
        shard = self.manifest.shards[number]
        records = self._with_file(lambda: self._read_index_file(shard))
        if len(records) != shard.samples:
            raise ShardError(
                f"index {shard.index_name}: {len(records)} records, the manifest says "
                f"{shard.samples}"
            )
        places = array("q")
        for row, record in enumerate(records):
            if len(record) != len(self._fields):
                raise ShardError(
                    f"index {shard.index_name}: record {row} has {len(record)} members, "
                    f"expected {len(self._fields)}"
                )
            for name, offset, size in record:
                if offset < 0 or size < 0 or offset + size > shard.bytes:
                    raise ShardError(
                        f"index {shard.index_name}: {name} has {size} bytes from byte {offset}, "
                        f"but the shard has {shard.bytes}"
                    )
                places.extend((offset, size))
        try:
            return self._parse_names(records, places)
        except ValueError as error:
            raise ShardError(f"index {Path(shard.index_name).name}: {error}") from error

    def _parse_names(self, records: list[list[Member]], places: array[int]) -> Index:
        return Index([split_name(record[0].name)[0] for record in records], places)

    def _read_index_file(self, shard: ShardFile) -> list[list[Member]]:
        path = self.index_path(shard)
        if path.stat().st_size > shard.most_index_bytes:
            raise ShardError(
                f"index {shard.index_name}: it is larger than any index of its shard can be"
            )
        return read_index(path)

    def _open_file(self, number: int) -> _OpenFile:
        if self._prefetch is not None:
            self._prefetch.opened(number)
        shard = self.manifest.shards[number]
        return self._with_file(lambda: _OpenFile(self.shard_path(shard)))

    def _with_file(self, use: Callable[[], Value]) -> Value:
        """Return `use()`, tried again while others delete from the cache what it opens."""
        for _ in range(_TRIES if self.is_remote else 0):
            with suppress(FileNotFoundError):
                return use()
        return use()


class _OpenFile:
    """A descriptor that is closed when nobody reads from it any more."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)
