"""A set's address -> an opened set whose files are all there; a folder of shards -> a set."""

from __future__ import annotations

import hashlib
from pathlib import Path

from .cache import DEFAULT_LIMIT, Cache, default_cache
from .check import Member, ShardError, check_tar, index_bytes, walk
from .download import fetch
from .files import write_atomic
from .foreign import ForeignSet
from .images import STORED_FORMATS, ImageError, decode_image
from .join import JOINED, load_joined, open_joined
from .manifest import (
    MOST_MANIFEST_BYTES,
    Manifest,
    ShardFile,
    file_sha256,
    load_manifest,
    parse_manifest,
    parse_sums,
    save_manifest,
)
from .reader import ShardSet
from .record import from_members, split_name
from .remote import Source, is_remote, open_source


def open_set(
    address: str | Path, *, cache: Path | None = None, cache_limit: int = DEFAULT_LIMIT
) -> ShardSet:
    """Open the shard set in a folder, or at an address such as `https://HOST/SET`.

    A folder that `clsp shards join` wrote is its set with the reader's own anchors. Of another
    folder, checks that every shard and index is there and that each shard has the manifest's
    size; hashes are compared by `ShardSet.verify`. From another address only the manifest is
    read; each shard is fetched, hashed and kept in `cache` when a record of it is first asked for.
    cache: a folder, by default the user's; cache_limit: bytes that fetched shards may take there.
    Raises ShardError naming what is missing or wrong.
    """
    if is_remote(address):
        source = open_source(address)
        manifest, _ = fetch_manifest(source)
        folder = (cache or default_cache()) / "shards"
        return make_reader(Cache(folder, source, cache_limit), manifest)
    folder = Path(address)
    if not folder.is_dir():
        raise ShardError(f"{folder} is not a folder")
    if (folder / JOINED).is_file() and not (folder / "manifest.json").exists():
        base = load_joined(folder)[0]
        if not is_remote(base) and (Path(base) / JOINED).exists():
            raise ShardError(f"{folder} joins {base}, which is a joined view itself")
        return open_joined(folder, open_set(base, cache=cache, cache_limit=cache_limit))
    shards = make_reader(folder, load_manifest(folder))
    for shard in shards.manifest.shards:
        for path in (shards.shard_path(shard), shards.index_path(shard)):
            if not path.is_file():
                raise ShardError(f"{folder}: {path.name} is missing; the manifest names it")
        size = shards.shard_path(shard).stat().st_size
        if size != shard.bytes:
            raise ShardError(f"shard {shard.name}: it has {size} bytes, expected {shard.bytes}")
    return shards


def make_reader(place: Path | Cache, manifest: Manifest) -> ShardSet:
    """Return the reader of a set's records, in whatever way its shards name their members."""
    return ShardSet(place, manifest) if manifest.names is None else ForeignSet(place, manifest)


def fetch_manifest(source: Source) -> tuple[Manifest, dict[str, str]]:
    """Return a set's manifest and the sha256 of its companions.

    The manifest is compared with SHA256SUMS. Raises ShardError when either is missing or wrong.
    """

    def parse(data: bytes) -> tuple[Manifest, dict[str, str]]:
        manifest = parse_manifest(data)
        sums = fetch(source, "SHA256SUMS", bytes, most=MOST_MANIFEST_BYTES)
        return manifest, parse_sums(sums, manifest)

    # Where the two do not fit, either may be the one that is damaged or old: both are asked again.
    return fetch(source, "manifest.json", parse, most=MOST_MANIFEST_BYTES)


def index_folder(folder: Path) -> ShardSet:
    """Make a set of a folder whose data/*.tar hold complete records: indexes and a manifest.

    K, the image format and size are read off the first record, and every record must agree.
    Every image is compared with its record's hash. Raises ShardError; then nothing is written.
    """
    if (folder / "manifest.json").exists():
        raise ShardError(f"{folder} has a manifest.json already; `clsp shards verify` checks it")
    paths = sorted((folder / "data").glob("*.tar"))
    if not paths:
        raise ShardError(f"{folder / 'data'} holds no .tar file")
    for path in paths:
        if not path.is_file():
            raise ShardError(f"shard {path.name}: it is no regular file")
    positives, image_format, image_size, anchors = _look_at_first_record(paths[0])
    indexes: list[bytes] = []
    shards: list[ShardFile] = []
    for path in paths:
        members = check_tar(path, positives, image_format, anchors)
        per_record = positives + anchors + 1
        for start in range(0, len(members), per_record):
            _check_record(path, members[start : start + per_record], image_format)
        index = index_bytes(members)
        indexes.append(index)
        shards.append(
            ShardFile(
                name=f"data/{path.name}",
                samples=len(members) // per_record,
                bytes=path.stat().st_size,
                sha256=file_sha256(path),
                idx_sha256=hashlib.sha256(index).hexdigest(),
            )
        )
    samples = sum(shard.samples for shard in shards)
    for path, index in zip(paths, indexes, strict=True):
        write_atomic(path.with_suffix(".idx"), index)
    manifest = Manifest(positives, image_format, image_size, samples, tuple(shards), anchors)
    save_manifest(folder, manifest)
    return open_set(folder)


def _look_at_first_record(path: Path) -> tuple[int, str, int, bool]:
    """Return (K, image format, pixels a side, whether there are anchors)."""
    names: list[tuple[str, str, str]] = []
    size = 0
    for member in walk(path):
        try:
            parts = split_name(member.name)
        except ValueError as error:
            raise ShardError(f"shard {path.name}, byte {member.offset}: {error}") from None
        if parts[1] == "json":
            break
        names.append(parts)
        try:
            size = size or decode_image(_content(path, member)).shape[0]
        except ImageError as error:
            raise ShardError(f"shard {path.name}: {member.name}: {error}") from error
    formats = {extension for _, _, extension in names}
    if len(formats) != 1 or not formats <= set(STORED_FORMATS):
        raise ShardError(f"shard {path.name}: the first record has images of formats {formats}")
    anchors = any(part == "anchor" for _, part, _ in names)
    return len(names) - anchors, formats.pop(), size, anchors


def _check_record(path: Path, members: list[Member], image_format: str) -> None:
    contents = {split_name(m.name)[1]: _content(path, m) for m in members}
    try:
        from_members(split_name(members[0].name)[0], contents, image_format)
    except ValueError as error:
        raise ShardError(f"shard {path.name}: {error}") from error


def _content(path: Path, member: Member) -> bytes:
    with open(path, "rb") as file:
        file.seek(member.offset)
        return file.read(member.size)
