"""Write one shard: whole under its name, or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from .check import BLOCK, END, Member, index_bytes, padding, tar_header
from .files import fsync_folder, temporary_name, write_atomic
from .manifest import ShardFile
from .record import Record, members


def write_shard(path: Path, records: Iterable[Record], positives: int) -> ShardFile:
    """Write `records` as the tar `path` with its index beside it; return what was written.

    The bytes depend on the records alone. The tar gets its name last, when everything is on disk.
    When `records` or the disk raises, the error passes through and nothing is left behind.
    Raises ValueError for a record that has not K = `positives`, or a key that comes twice.
    """
    temporary = temporary_name(path)
    digest = hashlib.sha256()
    written: list[Member] = []
    keys: set[str] = set()
    position = 0
    try:
        with open(temporary, "wb") as file:
            for record in records:
                if len(record.positives) != positives:
                    raise ValueError(
                        f"shard {path.name}: record {record.key} has {len(record.positives)} "
                        f"positives, expected {positives}"
                    )
                if record.key in keys:
                    raise ValueError(f"shard {path.name}: record {record.key} comes twice")
                keys.add(record.key)
                for name, data in members(record):
                    block = tar_header(name, len(data)) + data + bytes(padding(len(data)))
                    written.append(Member(name, position + BLOCK, len(data)))
                    position += file.write(block)
                    digest.update(block)
            if not written:
                raise ValueError(f"shard {path.name}: there is no record to write")
            position += file.write(END)
            digest.update(END)
            file.flush()
            os.fsync(file.fileno())
        index = index_bytes(written)
        write_atomic(path.with_suffix(".idx"), index)
        try:
            os.replace(temporary, path)
        except OSError:
            path.with_suffix(".idx").unlink(missing_ok=True)
            raise
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)
    return ShardFile(
        name=f"{path.parent.name}/{path.name}",
        samples=len(keys),
        bytes=position,
        sha256=digest.hexdigest(),
        idx_sha256=hashlib.sha256(index).hexdigest(),
    )
