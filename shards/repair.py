"""A damaged set made whole again: only its damaged files are fetched, or left to be made again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .check import ShardError
from .files import write_atomic
from .manifest import Manifest, ShardFile, file_sha256, load_manifest
from .remote import open_source
from .share import bring_shard
from .store import fetch_manifest, make_reader


@dataclass(frozen=True)
class Repair:
    """What was done: names of shards made whole, and of those that are still damaged."""

    repaired: tuple[str, ...]
    damaged: tuple[str, ...]


def repair(folder: Path, copy: str | None = None) -> Repair:
    """Compare every file of a set with its manifest and mend what differs.

    An index is made again from its tar. A shard is fetched from `copy`, the address of the same
    set; without one, its receipt is removed, so that the `clsp generate` that made the set makes
    that shard again and no other. Raises ShardError when `copy` is another set.
    """
    manifest = load_manifest(folder)
    source = None if copy is None else open_source(copy)
    if source is not None and (found := fetch_manifest(source)[0].id) != manifest.id:
        raise ShardError(f"{copy} is set {found[:12]}, {folder} is {manifest.id[:12]}")
    repaired, damaged = [], []
    for shard in manifest.shards:
        if _is(folder / shard.name, shard.sha256):
            if not _is(folder / shard.index_name, shard.idx_sha256):
                _index_again(folder, manifest, shard)
                repaired.append(shard.name)
        elif source is not None:
            bring_shard(source, folder, shard)
            repaired.append(shard.name)
        else:
            stem = Path(shard.name).stem
            (folder / "receipts" / f"{stem}.json").unlink(missing_ok=True)
            damaged.append(shard.name)
    return Repair(tuple(repaired), tuple(damaged))


def _is(path: Path, sha256: str) -> bool:
    return path.is_file() and file_sha256(path) == sha256


def _index_again(folder: Path, manifest: Manifest, shard: ShardFile) -> None:
    path = folder / shard.name
    write_atomic(path.with_suffix(".idx"), make_reader(folder, manifest).index_of(path))
