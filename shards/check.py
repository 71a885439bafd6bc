"""Strict tar walk: the members of a shard, or an error that says what is wrong and where.

Python's tarfile, and with it webdataset, stops silently at a damaged or missing header; a shard
cut there is just shorter. Here every byte of a tar but its members' content is known beforehand,
so it is compared, not interpreted: the header of each member is built again from its name and
size, padding is zero, the end mark is whole.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from .record import fields, split_name

BLOCK = 512
END = bytes(2 * BLOCK)
# Far above what anyone makes, and low enough that a hostile shard costs neither memory nor time.
MOST_MEMBER_BYTES = 2**26
MOST_MEMBERS = 2**18
_MOST_INDEX_WORD = 256  # bytes that an index spends on a member
_COUNT = re.compile(r"[0-9]{1,16}")
_MODE, _ZERO = b"0000644\0", b"0000000\0"


class ShardError(ValueError):
    """A damaged shard or set; the message says which, where, what was expected and found."""


class Member(NamedTuple):
    """One file of a tar: its name, the offset of its content, and its size, in bytes."""

    name: str
    offset: int
    size: int


def tar_header(name: str, size: int) -> bytes:
    """Return the only header block that a member of this name and size may have: plain USTAR.

    Laid out here rather than by `tarfile`, whose device fields depend on the version of Python.
    """
    encoded = name.encode("ascii")
    if len(encoded) > 100:
        raise ValueError(f"member name {name!r} does not fit into one USTAR header")
    head = encoded.ljust(100, b"\0") + _MODE + _ZERO + _ZERO + b"%011o\0%011o\0" % (size, 0)
    tail = b"0" + bytes(100) + b"ustar\x0000"
    checksum = sum(head) + sum(tail) + 8 * ord(" ")
    return (head + b"%06o\0 " % checksum + tail).ljust(BLOCK, b"\0")


def padding(size: int) -> int:
    """Return how many zero bytes follow a member's content."""
    return -size % BLOCK


def walk(path: Path) -> Iterator[Member]:
    """Yield the members of a tar that `tar_header` could have written; else raise ShardError."""
    with open(path, "rb") as file:
        total = os.fstat(file.fileno()).st_size
        position, count = 0, 0
        while True:
            header = _read(file, path, position, BLOCK, "a header")
            if header == bytes(BLOCK):
                rest = file.read(BLOCK + 1)
                if rest != bytes(BLOCK):
                    raise ShardError(
                        f"shard {path.name}, byte {position + BLOCK}: the end mark should be 1024 "
                        f"zero bytes and the end of the file; found {len(rest)} more bytes"
                    )
                return
            name, size = _parse(header, path, position)
            content = position + BLOCK
            end = content + size + padding(size)
            if end > total:
                raise ShardError(
                    f"shard {path.name}, byte {content}: {name!r} should have {size} bytes, "
                    f"but the file ends {end - total} bytes too early"
                )
            file.seek(content + size)
            if file.read(padding(size)) != bytes(padding(size)):
                raise ShardError(
                    f"shard {path.name}, byte {content + size}: padding after {name!r} is not zero"
                )
            count += 1
            if count > MOST_MEMBERS:
                raise ShardError(f"shard {path.name}: it has more than {MOST_MEMBERS:,} members")
            yield Member(name, content, size)
            position = end


def _read(file: BinaryIO, path: Path, position: int, size: int, what: str) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise ShardError(
            f"shard {path.name}, byte {position}: expected {what} of {size} bytes, found "
            f"{len(data)}; the shard is cut off"
        )
    return data


def _parse(header: bytes, path: Path, position: int) -> tuple[str, int]:
    try:
        name = header[:100].rstrip(b"\0").decode("ascii")
        size = int(header[124:135], 8)
        if not 0 < size <= MOST_MEMBER_BYTES or tar_header(name, size) != header:
            raise ValueError
    except ValueError:
        raise ShardError(
            f"shard {path.name}, byte {position}: expected the plain USTAR header of a regular "
            f"file, found {what_it_is(header)}"
        ) from None
    return name, size


_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"5": "a folder",
    b"6": "a named pipe",
    b"7": "a contiguous file",
    b"g": "a global pax header",
    b"x": "a pax header",
    b"K": "a GNU long link name",
    b"L": "a GNU long name",
    b"M": "a continued volume",
    b"S": "a sparse file",
    b"V": "a volume label",
}
_MAGIC = {
    b"\x1f\x8b": "gzip data",
    b"BZh": "bzip2 data",
    b"\xfd7zXZ": "xz data",
    b"\x28\xb5\x2f\xfd": "zstd data",
    b"\x04\x22\x4d\x18": "lz4 data",
    b"PK": "a zip archive",
    b"\x80": "a pickle",
    b"\x89PNG": "a PNG image",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"%!PS": "PostScript",
    b"<": "a page of HTML or XML",
    b"#!": "a script",
}


def what_it_is(header: bytes) -> str:
    """Return what a block is that should have been a member's header, in words."""
    if header[257:262] != b"ustar":
        for magic, words in _MAGIC.items():
            if header.startswith(magic):
                return words
        return f"a block that begins {header[:16]!r}"
    kind = header[156:157]
    name = header[:100].rstrip(b"\0")
    if kind in _KINDS:
        return f"{_KINDS[kind]}, {name!r}"
    if not name.isascii() or not name:
        return f"the name {name!r}"
    try:
        size = int(header[124:135], 8)
    except ValueError:
        return f"the size {header[124:136]!r} of {name!r}"
    if not 0 < size <= MOST_MEMBER_BYTES:
        return f"{name!r} of {size:,} bytes; 1 to {MOST_MEMBER_BYTES:,} are allowed"
    wanted = tar_header(name.decode(), size)
    # The checksum comes last, because it differs whenever anything else does.
    places = [*range(148), *range(156, BLOCK), *range(148, 156)]
    first = next(place for place in places if header[place] != wanted[place])
    return f"{header[first : first + 8]!r} instead of {wanted[first : first + 8]!r} at byte {first}"


def check_tar(path: Path, positives: int, image_format: str, anchors: bool = True) -> list[Member]:
    """Return the members of a shard in which every record is complete and in order.

    positives: K; every record must have exactly K.
    Raises ShardError for any damage that shows without knowing the content's hashes.
    """
    expected = fields(positives, image_format, anchors)
    found: list[Member] = []
    seen: set[str] = set()
    key = ""
    for member in walk(path):
        place = len(found) % len(expected)
        try:
            this_key = split_name(member.name)[0]
        except ValueError as error:
            raise ShardError(f"shard {path.name}, byte {member.offset}: {error}") from None
        if place == 0:
            key = this_key
            if key in seen:
                raise ShardError(f"shard {path.name}: record {key} comes twice")
            seen.add(key)
        wanted = f"{key}.{expected[place]}"
        if member.name != wanted:
            raise ShardError(
                f"shard {path.name}, byte {member.offset}: expected member {wanted}, found "
                f"{member.name}; the set has {positives} positives a record"
            )
        found.append(member)
    if len(found) % len(expected):
        raise ShardError(
            f"shard {path.name}: record {key} ends after {len(found) % len(expected)} of "
            f"{len(expected)} members"
        )
    if not found:
        raise ShardError(f"shard {path.name}: it holds no record")
    return found


def index_bytes(members: list[Member]) -> bytes:
    """Return the shard's index in the format of NVIDIA DALI's WebDataset reader, version 1.2.

    A first line `v1.2 RECORDS`, then one line a record of `EXTENSION OFFSET SIZE NAME` for each
    member, where the extension is all that follows the name's first dot.
    """
    lines: dict[str, list[str]] = {}
    for name, offset, size in members:
        key, _, extension = name.partition(".")
        lines.setdefault(key, []).append(f"{extension} {offset} {size} {name}")
    text = "\n".join(["v1.2 " + str(len(lines)), *(" ".join(line) for line in lines.values())])
    return (text + "\n").encode()


def read_index(path: Path) -> list[list[Member]]:
    """Return the members of each record as an index file lists them.

    Raises ShardError for a file that is not such an index.
    """
    if path.stat().st_size > MOST_MEMBERS * _MOST_INDEX_WORD:
        raise ShardError(f"index {path.name}: {path.stat().st_size:,} bytes are too many")
    try:
        first, *lines = path.read_text("ascii").split("\n")
        records = []
        for line in lines[:-1]:
            words = line.split(" ")
            records.append([_index_entry(*words[i : i + 4]) for i in range(0, len(words), 4)])
        if lines[-1:] != [""] or first != f"v1.2 {len(records)}":
            raise ValueError(f"its first line is {first[:80]!r} and {len(records)} records follow")
    except (ValueError, TypeError) as error:
        raise ShardError(f"index {path.name}: {error}") from error
    return records


def _index_entry(extension: str, offset: str, size: str, name: str) -> Member:
    counts = _COUNT.fullmatch(offset) and _COUNT.fullmatch(size)
    if not counts or int(size) > MOST_MEMBER_BYTES:
        raise ValueError(f"{name[:100]} has {size[:40]} bytes from byte {offset[:40]}")
    return Member(name, int(offset), int(size))
