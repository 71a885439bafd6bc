"""Records in tars that another wrote, found by the names of their members."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .check import BLOCK, MOST_MEMBER_BYTES, MOST_MEMBERS, Member, ShardError, padding, what_it_is
from .images import image_header
from .manifest import Names

MARK = "#sha256="  # in an index, between a member's name and its hash
_NAME = re.compile(r"((?:.*/)?[^.]+)\.([^/]+)", re.DOTALL)  # key and the rest, as webdataset does
_META = re.compile(r"__[^/]*__($|/)")  # members of webdataset's own
_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")


def group_members(path: Path) -> Iterator[tuple[str, dict[str, Member]]]:
    """Yield the records of any plain tar: the key, and members by the name after its first dot.

    Grouped as stock webdataset does: neighbours with the same key; names are in lower case.
    Raises ShardError for a compressed or damaged tar, and for a key or member that comes twice.
    """
    key, found, seen = "", dict[str, Member](), set[str]()
    for member in _regular_files(path):
        match = _NAME.fullmatch(member.name)
        if match is None or _META.match(member.name):
            continue
        if match[1] != key:
            if found:
                yield key, found
            key, found = match[1], {}
            if key in seen:
                raise ShardError(f"shard {path.name}: record {key} comes twice")
            seen.add(key)
        if match[2].lower() in found:
            raise ShardError(f"shard {path.name}: {member.name} comes twice")
        found[match[2].lower()] = member
    if found:
        yield key, found


def _regular_files(path: Path) -> Iterator[Member]:
    end = count = 0
    with open(path, "rb") as file:
        try:
            tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - it owns no file
        except tarfile.TarError:
            file.seek(0)
            found = what_it_is(file.read(BLOCK))
            raise ShardError(
                f"shard {path.name}: expected a tar, found {found}; records are read where they "
                "lie, so what is compressed has to be unpacked"
            ) from None
        try:
            with tar:
                for info in tar:
                    count += 1
                    end = info.offset_data + info.size + padding(info.size) if info.isreg() else end
                    if count > MOST_MEMBERS:
                        raise ShardError(
                            f"shard {path.name}: it has more than {MOST_MEMBERS:,} members"
                        )
                    if info.isreg() and not info.issparse():
                        yield Member(info.name, info.offset_data, info.size)
                    tar.members = []  # type: ignore[attr-defined]  # which it would keep
                end = max(end, tar.offset)
        except (tarfile.TarError, UnicodeError) as error:
            raise ShardError(f"shard {path.name}: {error}") from error
        # tarfile ends in silence at a header that it does not understand, and at the end of a file.
        file.seek(end)
        rest, zeros = 0, True
        while block := file.read(1 << 20):
            rest, zeros = rest + len(block), zeros and not any(block)
        if rest < BLOCK or not zeros:
            raise ShardError(
                f"shard {path.name}, byte {end}: expected the end mark, zeros up to the end of the "
                f"file, found {'other bytes' if rest else 'nothing'}; the shard is damaged or cut"
            )


@dataclass(frozen=True)
class Found:
    """A record: its key for clsp, and its members in the order of `Names.stored` with their sha256.

    formats, sizes: of the images.
    """

    key: str
    members: list[Member]
    digests: list[str]
    formats: list[str]
    sizes: list[tuple[int, int]]


def find_records(path: Path, names: Names) -> Iterator[Found]:
    """Yield the records of a shard. Raises ShardError for one that lacks a member.

    It ends with that error only after the last record, so that it can say what there is.
    """
    seen: Counter[str] = Counter()
    lacking = ""
    with open(path, "rb") as file:
        for key, found in group_members(path):
            seen.update(found.keys())
            if lacking:
                continue  # to the end, to say what there is
            missing = [name for name in names.stored if name not in found]
            if missing:
                lacking = (
                    f"shard {path.name}: record {key} has no member {missing[0]}; "
                    f"it has {', '.join(found)}"
                )
                continue
            members = [found[name] for name in names.stored]
            contents = []
            for member in members:
                if not 0 < member.size <= MOST_MEMBER_BYTES:
                    raise ShardError(f"shard {path.name}: {member.name} has {member.size:,} bytes")
                file.seek(member.offset)
                contents.append(file.read(member.size))
            digests = [hashlib.sha256(data).hexdigest() for data in contents]
            try:
                headers = [image_header(data) for data in contents[: len(names.images)]]
                if names.label:
                    parse_label(contents[-1], names.label)
            except ValueError as error:
                raise ShardError(f"shard {path.name}, record {key}: {error}") from error
            yield Found(
                safe_key(f"{path.stem}/{key}" if names.by_shard else key),
                members,
                digests,
                [header[0] for header in headers],
                [header[1] for header in headers],
            )
    never = [name for name in names.stored if not seen[name]]
    if never:
        each = ", ".join(f"{name} ({count:,})" for name, count in sorted(seen.items()))
        raise ShardError(
            f"shard {path.name}: no record has a member {' or '.join(never)}; the members found "
            f"are {each or 'none'}"
        )
    if lacking:
        raise ShardError(lacking)


def safe_key(key: str) -> str:
    """Return a key that is 1 to 80 of A-Z a-z 0-9 _ -: the same, or a readable one with a hash."""
    if _KEY.fullmatch(key):
        return key
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", key)[-64:]
    return f"{readable}-{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()[:12]}"


def parse_label(data: bytes, label: str) -> int:
    """Return the integer that a label's member holds, as text or in a field of its JSON.

    label: as in `Names`. Raises ValueError for anything else.
    """
    member, _, field = label.partition(":")
    try:
        value = json.loads(data)[field] if field else int(data.decode("ascii"))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"its {label} holds no integer: {data[:80]!r}") from error
    if type(value) is not int:
        raise ValueError(f"its {member} says {field} = {value!r}, expected an integer")
    return value


def foreign_index(records: Sequence[Found], names: Names) -> bytes:
    """Return the index of a shard: DALI's format, the extensions being the shard's own."""
    fields = foreign_fields(names)
    lines = [f"v1.2 {len(records)}"]
    for record in records:
        kinds = [*record.formats, "txt"]
        words = [
            f"{own} {member.offset} {member.size} {record.key}.{field}.{kind}{MARK}{digest}"
            for own, member, field, kind, digest in zip(
                names.stored, record.members, fields, kinds, record.digests, strict=False
            )
        ]
        lines.append(" ".join(words))
    return ("\n".join(lines) + "\n").encode()


def foreign_fields(names: Names) -> tuple[str, ...]:
    """Return clsp's names of the members, in the order of `Names.stored`."""
    images = ("anchor", *(f"p{number}" for number in range(len(names.positives))))
    return (*images, "label") if names.label else images
