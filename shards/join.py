"""Positives-only sets: leaving the anchors out, and pairing them with a reader's own images.

A record without its anchor says where the anchor lay in its source, and the sha256 of that file
and of its pixels. A joined set reads anchors from the reader's images, compared with those hashes
each time, and stores none.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .check import ShardError
from .files import write_atomic
from .images import (
    ImageError,
    ImageSource,
    Pixels,
    decode_image,
    encode_image,
    fit_square,
    open_images,
)
from .manifest import Manifest
from .reader import ShardSet
from .record import Record, check_hashes

JOINED = "joined.json"
FORMAT = "clsp-joined"

# What may become of an anchor, from good to bad; the last two have no image.
SAME, RENAMED, REENCODED, WRONG_VERSION, MISSING = (
    "same",
    "renamed",
    "re-encoded",
    "wrong-version",
    "missing",
)


def without_anchor(record: Record) -> Record:
    """Return the record less its anchor, which it names by the hash of its pixels."""
    if record.anchor is None:
        return record
    meta = dict(record.meta)
    if "rgb_sha256" not in meta:
        meta["rgb_sha256"] = _sha256(decode_image(record.anchor))
    return replace(record, anchor=None, meta=meta)


@dataclass(frozen=True)
class Pairing:
    """Which image of a source each record's anchor is.

    paths: (N,) where in the source it lies, None where there is no such image; kinds: (N,) what
    became of it: same, renamed, re-encoded, wrong-version or missing; keys: (N,) the records'.
    """

    keys: tuple[str, ...]
    paths: tuple[str | None, ...]
    kinds: tuple[str, ...]

    def check(self, allow: tuple[str, ...] = ()) -> None:
        """Raise ShardError unless every record has its anchor, or lacks it in an allowed way."""
        counts = Counter(kind for kind in self.kinds if kind in (WRONG_VERSION, MISSING))
        for kind in (MISSING, WRONG_VERSION):
            if counts[kind] and kind not in allow:
                first = self.keys[self.kinds.index(kind)]
                raise ShardError(
                    f"{counts[kind]:,} of {len(self.keys):,} anchors are {kind}, {first} the "
                    f"first; --allow {kind} leaves their records out"
                )
        if not any(path is not None for path in self.paths):
            raise ShardError(f"none of {len(self.keys):,} anchors is in the image source")

    def describe(self) -> str:
        """Return how many anchors are of each kind, in words."""
        counts = Counter(self.kinds)
        kinds = (SAME, RENAMED, REENCODED, WRONG_VERSION, MISSING)
        return ", ".join(f"{counts[kind]:,} {kind}" for kind in kinds if counts[kind])


def pair_anchors(shards: ShardSet, source: ImageSource) -> Pairing:
    """Find each record's anchor in an image source, by path and hash, else by hash alone.

    An image counts only when the sha256 of its bytes, or else of its pixels at the set's size, is
    the record's. The whole source is hashed when some record's path does not lead to its anchor.
    Raises ShardError for a record that does not say which its anchor is.
    """
    side = shards.manifest.image_size
    by_path = {source.path(index): index for index in range(len(source))}
    wanted = [_anchor_of(shards, row) for row in range(len(shards))]
    paths: list[str | None] = [None] * len(wanted)
    kinds = [MISSING] * len(wanted)
    for row, anchor in enumerate(wanted):
        index = by_path.get(anchor.path)
        if index is not None:
            kinds[row] = _compare(source, index, anchor, side)
            paths[row] = None if kinds[row] == WRONG_VERSION else anchor.path
    lost = [row for row, path in enumerate(paths) if path is None]
    if lost:
        by_bytes, by_pixels = _hash_source(source, side)
        for row in lost:
            anchor = wanted[row]
            same = by_bytes.get(anchor.file_sha256) if anchor.file_sha256 else None
            index = by_pixels.get(anchor.rgb_sha256) if same is None else same
            if index is not None:
                exact = same is not None or source.file_sha256(index) is None
                kinds[row] = RENAMED if exact else REENCODED
                paths[row] = source.path(index)
    return Pairing(tuple(shards.keys), tuple(paths), tuple(kinds))


@dataclass(frozen=True)
class _Anchor:
    path: str
    file_sha256: str | None
    rgb_sha256: str


def _anchor_of(shards: ShardSet, row: int) -> _Anchor:
    try:
        meta, _ = check_hashes(shards.read(row, ["json"]))
        path, file, rgb = meta.get("source", ""), meta.get("source_sha256"), meta["rgb_sha256"]
        if not isinstance(path, str) or not isinstance(rgb, str):
            raise ValueError(f"its source is {path!r} and the sha256 of its pixels {rgb!r}")
        return _Anchor(path, file if isinstance(file, str) else None, rgb)
    except KeyError as error:
        raise ShardError(f"record {shards.key(row)} does not say which its anchor is") from error
    except ValueError as error:
        raise ShardError(f"record {shards.key(row)}: {error}") from error


def _compare(source: ImageSource, index: int, anchor: _Anchor, side: int) -> str:
    """Return what the image where the anchor should lie is: same, re-encoded or wrong-version."""
    found = source.file_sha256(index)
    if found is not None and found == anchor.file_sha256:
        return SAME
    try:
        pixels = _fitted(source, index, side)
    except ImageError:
        return WRONG_VERSION
    if _sha256(pixels) != anchor.rgb_sha256:
        return WRONG_VERSION
    return REENCODED if found and anchor.file_sha256 else SAME


def _hash_source(source: ImageSource, side: int) -> tuple[dict[str, int], dict[str, int]]:
    """Return which image has which sha256, of its bytes and of its pixels; the first of equals."""
    by_bytes: dict[str, int] = {}
    by_pixels: dict[str, int] = {}
    for index in range(len(source)):
        if (found := source.file_sha256(index)) is not None:
            by_bytes.setdefault(found, index)
        try:
            by_pixels.setdefault(_sha256(_fitted(source, index, side)), index)
        except ImageError:
            continue  # a file that cannot be read is nobody's anchor
    return by_bytes, by_pixels


def _fitted(source: ImageSource, index: int, side: int) -> Pixels:
    return np.asarray(fit_square(source.read(index), side))


def _sha256(pixels: Pixels) -> str:
    return hashlib.sha256(pixels.tobytes()).hexdigest()


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
        wanted, image = _anchor_of(self.base, self.rows[index]), self.images[index]
        pixels = _fitted(self.source, image, self.manifest.image_size)
        # The bytes decide where another version of a decoder gives other pixels.
        if _sha256(pixels) != wanted.rgb_sha256 and (
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
