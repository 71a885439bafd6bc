"""Which image of a source each record's anchor is: by where it lay, and by hashes.

A record without its anchor says where the anchor lay in its source, and the sha256 of that file
and of its pixels.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from .check import ShardError
from .images import ImageError, ImageSource, Pixels, decode_image, fit_square
from .reader import ShardSet
from .record import Record, check_hashes

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
        meta["rgb_sha256"] = pixels_sha256(decode_image(record.anchor))
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
    wanted = [anchor_of(shards, row) for row in range(len(shards))]
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
class Anchor:
    """What a record says of its anchor: its path in the source, and hashes of file and pixels."""

    path: str
    file_sha256: str | None
    rgb_sha256: str


def anchor_of(shards: ShardSet, row: int) -> Anchor:
    """Return what a record says of its anchor. Raises ShardError when that is not enough."""
    try:
        meta, _ = check_hashes(shards.read(row, ["json"]))
        path, file, rgb = meta.get("source", ""), meta.get("source_sha256"), meta["rgb_sha256"]
        if not isinstance(path, str) or not isinstance(rgb, str):
            raise ValueError(f"its source is {path!r} and the sha256 of its pixels {rgb!r}")
        return Anchor(path, file if isinstance(file, str) else None, rgb)
    except KeyError as error:
        raise ShardError(f"record {shards.key(row)} does not say which its anchor is") from error
    except ValueError as error:
        raise ShardError(f"record {shards.key(row)}: {error}") from error


def _compare(source: ImageSource, index: int, anchor: Anchor, side: int) -> str:
    """Return what the image where the anchor should lie is: same, re-encoded or wrong-version."""
    found = source.file_sha256(index)
    if found is not None and found == anchor.file_sha256:
        return SAME
    try:
        pixels = fitted(source, index, side)
    except ImageError:
        return WRONG_VERSION
    if pixels_sha256(pixels) != anchor.rgb_sha256:
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
            by_pixels.setdefault(pixels_sha256(fitted(source, index, side)), index)
        except ImageError:
            continue  # a file that cannot be read is nobody's anchor
    return by_bytes, by_pixels


def fitted(source: ImageSource, index: int, side: int) -> Pixels:
    """Return an image of a source at the set's size: (side, side, 3) uint8."""
    return np.asarray(fit_square(source.read(index), side))


def pixels_sha256(pixels: Pixels) -> str:
    """Return the sha256 of an image's pixels, row by row, in hex."""
    return hashlib.sha256(pixels.tobytes()).hexdigest()
