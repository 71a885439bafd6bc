"""One anchor and its positives <-> tar members. The only file that knows member names."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .images import STORED_FORMATS

_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")
_FIELD = re.compile(r"anchor|p(0|[1-9][0-9]{0,3})")
_MOST_JSON_BYTES = 2**20


@dataclass(frozen=True)
class Record:
    """An anchor, its K positives (encoded images) and what is known of them.

    key: letters, digits, `_` and `-`, at most 80, unique in a set.
    anchor: None in a set that carries no anchors.
    """

    key: str
    anchor: bytes | None
    positives: tuple[bytes, ...]
    meta: dict[str, Any] = field(default_factory=dict)
    image_format: str = "png"

    def __post_init__(self) -> None:
        if not _KEY.fullmatch(self.key):
            raise ValueError(f"key {self.key!r} is not 1 to 80 of A-Z a-z 0-9 _ -")
        if self.image_format not in STORED_FORMATS:
            raise ValueError(f"image format {self.image_format!r} is none of png, webp, jpeg")


def fields(positives: int, image_format: str, anchor: bool = True) -> tuple[str, ...]:
    """Return a record's member names after the key and its dot, in the order of the tar."""
    names = [f"p{number}" for number in range(positives)]
    return (*(f"{name}.{image_format}" for name in ["anchor"] * anchor + names), "json")


def members(record: Record) -> list[tuple[str, bytes]]:
    """Return (name, content) of the record's tar members, in order.

    The JSON holds `record.meta` and under "sha256" the hash of every image, so that a record can
    be checked without a manifest. It is canonical: sorted keys, no spaces.
    """
    images = ([] if record.anchor is None else [record.anchor]) + list(record.positives)
    names = fields(len(record.positives), record.image_format, record.anchor is not None)
    hashes = {
        name.partition(".")[0]: hashlib.sha256(image).hexdigest()
        for name, image in zip(names[:-1], images, strict=True)
    }
    meta = {**record.meta, "sha256": hashes}
    text = json.dumps(meta, sort_keys=True, separators=(",", ":"), allow_nan=False)
    contents = [*images, text.encode()]
    return [(f"{record.key}.{name}", data) for name, data in zip(names, contents, strict=True)]


def split_name(name: str) -> tuple[str, str, str]:
    """Split a member name into key, field ("anchor", "p3" or "json") and extension.

    Raises ValueError for a name that no record has.
    """
    key, _, rest = name.partition(".")
    part, _, extension = rest.partition(".")
    if not _KEY.fullmatch(key):
        raise ValueError(f"{name!r} has a key that is not 1 to 80 of A-Z a-z 0-9 _ -")
    if rest == "json":
        return key, "json", "json"
    if not _FIELD.fullmatch(part) or extension not in STORED_FORMATS:
        raise ValueError(
            f"{name!r} is none of KEY.anchor.EXT, KEY.pN.EXT and KEY.json, EXT png, webp or jpeg"
        )
    return key, part, extension


def parse_json(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a record's JSON without the hashes, and the hashes of its images by field.

    Raises ValueError for a JSON that is not one of clsp's.
    """
    if len(data) > _MOST_JSON_BYTES:
        raise ValueError(f"its JSON has {len(data):,} bytes, at most 1 MiB is allowed")
    try:
        meta: dict[str, Any] = json.loads(data)
        hashes = dict(meta.pop("sha256"))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"its JSON is not one of clsp's: {error!r}") from error
    return meta, hashes


def check_hashes(contents: Mapping[str, bytes]) -> tuple[dict[str, Any], set[str]]:
    """Compare images with the hashes in their record's JSON.

    contents: some of a record's images by field, and "json".
    Returns that JSON without the hashes, and the names of the images that it hashes.
    Raises ValueError naming an image that differs.
    """
    meta, hashes = parse_json(contents["json"])
    for name, data in contents.items():
        found = hashlib.sha256(data).hexdigest()
        if name != "json" and found != hashes.get(name):
            raise ValueError(f"{name} has sha256 {found}, its JSON says {hashes.get(name)}")
    return meta, set(hashes)


def from_members(key: str, contents: Mapping[str, bytes], image_format: str) -> Record:
    """Rebuild a whole record from its fields' contents. Raises ValueError when they do not fit.

    Every image is compared with the hash in the JSON.
    """
    try:
        meta, hashed = check_hashes(contents)
        if hashed != set(contents) - {"json"}:
            raise ValueError(f"it has {sorted(contents)}, its JSON hashes {sorted(hashed)}")
    except ValueError as error:
        raise ValueError(f"record {key}: {error}") from error
    positives = tuple(contents[f"p{n}"] for n in range(len(contents) - 1 - ("anchor" in contents)))
    return Record(key, contents.get("anchor"), positives, meta, image_format)
