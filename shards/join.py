"""Positives-only sets as a view: anchors are read from the reader's own images, and none is copied.

Each is compared with the hashes in its record whenever it is read.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from .check import ShardError
from .files import write_atomic
from .images import ImageSource, Pixels, encode_image, open_images
from .manifest import Manifest
from .pairing import Pairing, anchor_of, fitted, pixels_sha256
from .reader import ShardSet
from .record import Record

JOINED = "joined.json"
FORMAT = "clsp-joined"


class JoinedSet(ShardSet):
    """A positives-only set with anchors read from an image source; records without one left out.

    An anchor that is no longer the one that was joined is a ShardError when it is read.
    """

    def __init__(
        self, view: Path, base: ShardSet, source: ImageSource, paths: tuple[str | None, ...]
    ) -> None:
        """view: the view's own folder; paths: (N,) of `Pairing`.

        Raises ShardError when the source lacks one of them.
        """
        by_path = {source.path(index): index for index in range(len(source))}
        self.view, self.base, self.source = view, base, source
        self.rows = [row for row, path in enumerate(paths) if path is not None]
        chosen = [path for path in paths if path is not None]
        if gone := [path for path in chosen if path not in by_path]:
            raise ShardError(f"{source.spec} has no {gone[0]} any more; join again")
        self.images = [by_path[path] for path in chosen]
        super().__init__(base.place, _joined_manifest(base, self.rows))

    @property
    def folder(self) -> Path:
        """The view's folder: what is measured of it lies there, and not beside the set's shards."""
        return self.view

    @property
    def address(self) -> str:
        return str(self.view)

    def shard_keys(self, number: int) -> list[str]:
        start, stop = self._starts[number : number + 2]
        return [self.base.key(row) for row in self.rows[start:stop]]

    def key(self, index: int) -> str:
        self._place(index)  # refuses an index that is out of range
        return self.base.key(self.rows[index])

    def read(self, index: int, wanted: Sequence[str] | None = None) -> dict[str, bytes]:
        names = self._fields if wanted is None else wanted
        stored = [name for name in names if name != "anchor"]
        self._place(index)
        contents = self.base.read(self.rows[index], stored)
        if "anchor" in names:
            contents["anchor"] = encode_image(self._anchor(index), self.manifest.image_format)
        return contents

    def record(self, index: int) -> Record:
        self._place(index)
        record = self.base.record(self.rows[index])
        return replace(record, anchor=encode_image(self._anchor(index), self.manifest.image_format))

    def pixels(self, index: int, wanted: Sequence[str]) -> np.ndarray:
        self._place(index)
        stored = [name for name in wanted if name != "anchor"]
        images: dict[str, Pixels] = {}
        if stored:
            images.update(zip(stored, self.base.pixels(self.rows[index], stored), strict=True))
        if "anchor" in wanted:
            images["anchor"] = self._anchor(index)
        return np.stack([images[name] for name in wanted])

    def verify(self, deep: bool = False) -> None:
        self.base.verify(deep)
        for index in range(len(self)):
            self._anchor(index)

    def prefetch(self, order: Sequence[int]) -> None:
        numbers = _shards_kept(self.base, self.rows)
        self.base.prefetch([numbers[number] for number in order])

    def _anchor(self, index: int) -> Pixels:
        wanted, image = anchor_of(self.base, self.rows[index]), self.images[index]
        pixels = fitted(self.source, image, self.manifest.image_size)
        # The bytes decide where another version of a decoder gives other pixels.
        if pixels_sha256(pixels) != wanted.rgb_sha256 and (
            wanted.file_sha256 is None or self.source.file_sha256(image) != wanted.file_sha256
        ):
            raise ShardError(
                f"{self.source.spec}: {self.source.path(image)} is no longer the anchor of "
                f"{self.key(index)}"
            )
        return pixels


def _shards_kept(base: ShardSet, rows: list[int]) -> dict[int, int]:
    """Return the base set's number of each shard of which some record is kept."""
    starts = np.cumsum([0, *base.shard_sizes])
    kept = sorted(set((np.searchsorted(starts, rows, side="right") - 1).tolist()))
    return dict(enumerate(kept))


def _joined_manifest(base: ShardSet, rows: list[int]) -> Manifest:
    starts = np.cumsum([0, *base.shard_sizes])
    counts = Counter((np.searchsorted(starts, rows, side="right") - 1).tolist())
    shards = tuple(
        replace(base.manifest.shards[number], samples=count)
        for number, count in sorted(counts.items())
    )
    # The id of the view: the same wherever the anchors lie, another when other records are kept.
    kept = hashlib.sha256("".join(f"{base.key(row)}\n" for row in rows).encode()).hexdigest()
    plan = {**base.manifest.plan, "joined": {"set": base.id, "records": kept}}
    return replace(base.manifest, anchors=True, samples=len(rows), shards=shards, plan=plan)


def save_joined(folder: Path, address: str, spec: str, base: ShardSet, pairing: Pairing) -> None:
    """Write a joined view: the addresses of set and images, and which image belongs to which."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "format": FORMAT,
        "version": 1,
        "set": address,
        "set_id": base.id,
        "anchors": spec,
        "paths": pairing.paths,
    }
    write_atomic(folder / JOINED, (json.dumps(values) + "\n").encode())


def load_joined(folder: Path) -> tuple[str, str, str, tuple[str | None, ...]]:
    """Return what a joined view holds: set address, set id, image spec, and the anchors' paths."""
    try:
        values = json.loads((folder / JOINED).read_bytes())
        if (values["format"], values["version"]) != (FORMAT, 1):
            raise ValueError(f"format {values['format']!r}, version {values['version']!r}")
        return values["set"], values["set_id"], values["anchors"], tuple(values["paths"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ShardError(f"{folder / JOINED} is no joined view: {error!r}") from error


def open_joined(folder: Path, base: ShardSet) -> JoinedSet:
    """Open a joined view over its opened set. Raises ShardError when the set is another one."""
    address, set_id, spec, paths = load_joined(folder)
    if base.id != set_id:
        raise ShardError(f"{folder} joins set {set_id[:12]}, {address} is {base.id[:12]}")
    if len(paths) != len(base):
        raise ShardError(f"{folder} pairs {len(paths)} records, the set has {len(base)}")
    return JoinedSet(folder, base, open_images(spec), paths)
