"""Sets made of sets: a part of one, several in one, one without its anchors; and what differs."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, pairwise, repeat
from pathlib import Path
from typing import Any

import numpy as np

from .check import ShardError
from .files import new_folder
from .manifest import Manifest, save_manifest
from .order import hash_key
from .pairing import without_anchor
from .reader import ShardSet
from .record import Record, check_hashes
from .store import open_set
from .writer import write_shard


def write_set(
    out: Path,
    like: Manifest,
    shards: Iterable[Iterable[Record]],
    by: str,
    splits: Iterable[str] = repeat("train"),
) -> ShardSet:
    """Write records, shard by shard, as a set of its own: the new folder `out`, whole or not there.

    like: its K, format, anchors, source and plan describe the new set; by: how it was derived;
    splits: what each shard is named after, and numbered within.
    Raises FileExistsError when `out` holds something.
    """
    counts = Counter[str]()
    written = []
    with new_folder(out) as folder:
        (folder / "data").mkdir()
        for split_name, records in zip(splits, shards, strict=False):
            path = folder / "data" / f"{split_name}-{counts[split_name]:05d}.tar"
            written.append(write_shard(path, records, like.positives))
            counts[split_name] += 1
        samples = sum(shard.samples for shard in written)
        manifest = replace(
            like,
            samples=samples,
            shards=tuple(written),
            plan_id="",
            plan={**like.plan, "derived": [*like.plan.get("derived", []), by]},
            source={**like.source, "samples": samples},
            names=None,
        )
        save_manifest(folder, manifest)
    return open_set(out)


def strip(shards: ShardSet, out: Path) -> ShardSet:
    """Write the set without its anchors: the shards that `clsp generate --no-anchors` makes."""
    if not shards.manifest.anchors:
        raise ShardError(f"{shards.address} carries no anchors already")
    like = replace(shards.manifest, anchors=False)
    parts = (
        (without_anchor(shards.record(row)) for row in rows) for rows in _rows_by_shard(shards)
    )
    return write_set(out, like, parts, f"strip {shards.id}", _splits(shards))


def subset(shards: ShardSet, out: Path, per_class: int, seed: int = 0) -> ShardSet:
    """Write `per_class` records of each class, drawn by a hash of (seed, key), in the set's order.

    Raises ShardError for a record without a label, and for a class that has fewer records.
    """
    by_class: defaultdict[int, list[int]] = defaultdict(list)
    for row in range(len(shards)):
        by_class[_label(shards, row)].append(row)
    chosen: list[int] = []
    for label, rows in sorted(by_class.items()):
        if len(rows) < per_class:
            raise ShardError(f"class {label} has {len(rows)} records, {per_class} are asked for")
        chosen += sorted(rows, key=lambda row: _draw(shards, row, seed))[:per_class]
    by = f"subset {shards.id} per_class={per_class} seed={seed}"
    return write_rows(shards, out, sorted(chosen), by)


def split(
    shards: ShardSet, out: Path, shares: Mapping[str, float], seed: int = 0
) -> list[ShardSet]:
    """Write disjoint parts that make up the set, each drawn by a hash of (seed, key).

    shares: each part's name, which is that of its folder in `out` and of its shards, and its share;
    they add up to 1.
    Raises ShardError for shares that do not, and for a part that would be empty.
    """
    if not shares or min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-9:
        raise ShardError(f"shares are {dict(shares)}, expected positive numbers that add up to 1")
    drawn = sorted(range(len(shards)), key=lambda row: _draw(shards, row, seed))
    ends = np.rint(np.cumsum([0, *shares.values()]) * len(shards)).astype(int)
    parts = [drawn[start:end] for start, end in pairwise(ends)]
    if not all(parts):
        raise ShardError(f"{len(shards)} records are too few for shares of {dict(shares)}")
    return [
        write_rows(
            shards, out / name, sorted(rows), f"split {shards.id} {name}={share} seed={seed}", name
        )
        for (name, share), rows in zip(shares.items(), parts, strict=True)
    ]


def merge(sets: Sequence[ShardSet], out: Path) -> ShardSet:
    """Write one set of several: the records of all, or the positives of all for each record.

    Sets with no key in common and the same K are put one after the other; their shards keep the
    names of their splits. Sets with the same keys and the same anchors give each record the
    positives of all, in the order of the sets.
    Raises ShardError for sets that are neither, that differ in format, size, classes or anchors, or
    that have the same positives.
    """
    first = sets[0].manifest
    for other in sets[1:]:
        for name in ("image_format", "image_size", "classes", "anchors"):
            here, there = getattr(first, name), getattr(other.manifest, name)
            if here != there:
                raise ShardError(
                    f"{name} is {here} in {sets[0].address}, {there} in {other.address}"
                )
    keys = [set(shards.keys) for shards in sets]
    by = "merge " + " ".join(shards.id for shards in sets)
    union = set[str]().union(*keys)
    if len(union) == sum(map(len, keys)):
        for other in sets[1:]:
            if other.positives != first.positives:
                raise ShardError(
                    f"{sets[0].address} has {first.positives} positives a record, "
                    f"{other.address} {other.positives}: their anchors differ, so K must not"
                )
        parts = (map(shards.record, rows) for shards in sets for rows in _rows_by_shard(shards))
        splits = chain.from_iterable(map(_splits, sets))
        return write_set(out, _merged(sets, first.positives), parts, by, splits)
    if any(each != union for each in keys):
        common = len(set[str].intersection(*keys))
        raise ShardError(
            f"the sets share {common} of {len(union)} keys; merging takes sets with none in "
            "common, or with the same ones"
        )
    rows_of = [{key: row for row, key in enumerate(shards.keys)} for shards in sets]

    def stacked(rows: range) -> Iterator[Record]:
        for row in rows:
            key = sets[0].key(row)
            yield _stack([s.record(of[key]) for s, of in zip(sets, rows_of, strict=True)])

    positives = sum(shards.positives for shards in sets)
    stacks = map(stacked, _rows_by_shard(sets[0]))
    return write_set(out, _merged(sets, positives), stacks, by, _splits(sets[0]))


@dataclass(frozen=True)
class Difference:
    """What differs between two sets: lines on how they were made, and keys by what became of them.

    changed: of the keys in both, those whose positives that both have, or anchors, differ.
    """

    made: tuple[str, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    changed: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.made or self.only_first or self.only_second or self.changed)


def diff(first: ShardSet, second: ShardSet) -> Difference:
    """Compare how two sets were made, and their records by the hashes of their images."""
    made = list(_compare("", _facts(first.manifest), _facts(second.manifest)))
    rows = {key: row for row, key in enumerate(second.keys)}
    changed = []
    for row, key in enumerate(first.keys):
        if key in rows:
            one, two = _hashes(first, row), _hashes(second, rows[key])
            if any(one[name] != two[name] for name in one.keys() & two.keys()):
                changed.append(key)
    keys = set(first.keys)
    return Difference(
        tuple(made),
        tuple(key for key in first.keys if key not in rows),
        tuple(key for key in second.keys if key not in keys),
        tuple(changed),
    )


def write_rows(
    shards: ShardSet, out: Path, rows: Sequence[int], by: str, split: str = "train"
) -> ShardSet:
    """Write some records of a set as a new one, in shards as large as its largest."""
    size = max(shards.shard_sizes)
    parts = (map(shards.record, rows[at : at + size]) for at in range(0, len(rows), size))
    return write_set(out, shards.manifest, parts, by, repeat(split))


def _rows_by_shard(shards: ShardSet) -> list[range]:
    return [range(*ends) for ends in pairwise(accumulate([0, *shards.shard_sizes]))]


def _splits(shards: ShardSet) -> list[str]:
    return [shard.split for shard in shards.manifest.shards]


def _label(shards: ShardSet, row: int) -> int:
    label = check_hashes(shards.read(row, ["json"]))[0].get("label")
    if type(label) is not int:
        raise ShardError(f"record {shards.key(row)} has no label")
    return label


def _draw(shards: ShardSet, row: int, seed: int) -> int:
    return hash_key(f"{seed}/{shards.key(row)}")


def _merged(sets: Sequence[ShardSet], positives: int) -> Manifest:
    prints = {tuple(sorted(p.items())) for shards in sets for p in shards.manifest.fingerprints}
    return replace(
        sets[0].manifest,
        positives=positives,
        fingerprints=tuple(dict(items) for items in sorted(prints)),
    )


def _stack(records: Sequence[Record]) -> Record:
    """One record with the positives of all; what their JSONs differ in becomes a list."""
    first = records[0]
    for name in ("rgb_sha256", "source_sha256", "label"):
        if len({record.meta.get(name) for record in records}) > 1:
            raise ShardError(f"record {first.key}: {name} differs between the sets")
    if len({record.anchor for record in records}) > 1:
        raise ShardError(f"record {first.key}: the sets have different anchors")
    positives = tuple(image for record in records for image in record.positives)
    if len(set(positives)) < sum(len(set(record.positives)) for record in records):
        raise ShardError(
            f"record {first.key}: the sets have a positive in common, as sets of one seed have; "
            "make more with another --seed, or with more --positives"
        )
    meta: dict[str, Any] = {}
    for name in first.meta:
        values = [record.meta.get(name) for record in records]
        meta[name] = values[0] if all(value == values[0] for value in values) else values
    return replace(first, positives=positives, meta=meta)


def _hashes(shards: ShardSet, row: int) -> dict[str, str]:
    hashes: dict[str, str] = json.loads(shards.read(row, ["json"])["json"])["sha256"]
    return hashes


def _facts(manifest: Manifest) -> dict[str, Any]:
    return {
        "positives": manifest.positives,
        "image_format": manifest.image_format,
        "image_size": manifest.image_size,
        "anchors": manifest.anchors,
        "classes": list(manifest.classes or ()),
        "source": manifest.source,
        "plan": {k: v for k, v in manifest.plan.items() if k != "key_hashes"},
        "made on": list(manifest.fingerprints),
    }


def _compare(name: str, first: Any, second: Any) -> Iterator[str]:
    """Yield a line for each value that differs, `plan.config.w: 0.1 | 0.2`."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in sorted(first.keys() | second.keys()):
            yield from _compare(f"{name}.{key}".lstrip("."), first.get(key), second.get(key))
    elif first != second:
        yield f"{name}: {first} | {second}"
