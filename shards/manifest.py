"""Receipts and the manifest: what a set is, what made it, and what its bytes must be."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from .check import BLOCK, ShardError
from .files import write_atomic
from .images import MOST_SIDE, STORED_FORMATS

FORMAT, VERSION = "clsp-shards", 1
MOST_MANIFEST_BYTES = 1 << 28  # that of a million shards
# What may lie beside the shards, is covered by SHA256SUMS, and travels with the set. It is no part
# of what the set's id stands for, and may be written or changed later.
COMPANIONS = (
    "README.md",
    "LICENSE",
    "CITATION.cff",
    "croissant.json",
    "config.json",
    "plan.json",
    "preview.png",
    "scores/hardness.json",
    "scores/hardness.npy",
)
_NAME = re.compile(r"data/[A-Za-z0-9_-]{1,80}\.tar")
_MOST_INDEX_ENTRY = 256  # bytes of one member in an index: extension, offset, size and name
_MEMBER = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
MOST_POSITIVES = 4096
PAPER = "https://arxiv.org/abs/2408.16965"


@dataclass(frozen=True)
class ShardFile:
    """One shard: its path inside the set, how many records and bytes it has, and its hashes."""

    name: str
    samples: int
    bytes: int
    sha256: str
    idx_sha256: str

    def __post_init__(self) -> None:
        # A manifest may come from anyone: a name must not lead out of the set.
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ValueError(f"shard name {self.name!r} is not data/NAME.tar")
        for count in (self.samples, self.bytes):
            if type(count) is not int or count < 1:
                raise ValueError(f"shard {self.name}: a count is {count!r}, expected at least 1")
        for digest in (self.sha256, self.idx_sha256):
            if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
                raise ValueError(f"shard {self.name}: {digest!r} is not a sha256 in hex")

    @property
    def split(self) -> str:
        """The split that the shard is of by its name, what stands before its number; else train."""
        stem = self.name.removeprefix("data/").removesuffix(".tar")
        before, _, number = stem.rpartition("-")
        return (before if number.isdigit() else stem) or "train"

    @property
    def index_name(self) -> str:
        """The path of the shard's index inside the set."""
        return f"{self.name.removesuffix('.tar')}.idx"

    @property
    def most_index_bytes(self) -> int:
        """How large the index can be, by the number of headers that the tar has room for."""
        return self.bytes // BLOCK * _MOST_INDEX_ENTRY


@dataclass(frozen=True)
class Receipt:
    """Proof that one shard of a plan is done, and on what it was made."""

    shard: ShardFile
    plan_id: str
    fingerprint: dict[str, str]

    def to_json(self) -> bytes:
        """Return the JSON that `parse_receipt` reads."""
        return (json.dumps(asdict(self), indent=2, sort_keys=True) + "\n").encode()


@dataclass(frozen=True)
class Names:
    """What the members of records that another wrote are called, after the key and its dot.

    anchor, positives: such as "jpg" and ("syn0.png", "syn1.png"); label: a member that holds an
    integer, such as "cls", or a field of one that holds JSON, "json:label"; empty: no label.
    by_shard: whether keys are unique within a shard only.
    """

    anchor: str
    positives: tuple[str, ...]
    label: str = ""
    by_shard: bool = False

    def __post_init__(self) -> None:
        for name in self.images:
            if not isinstance(name, str) or not _MEMBER.fullmatch(name):
                raise ValueError(f"member {name!r} is not 1 to 80 of a-z 0-9 . _ -")
        if len(set(self.images)) != len(self.images):
            raise ValueError(f"members {', '.join(self.images)}: one comes twice")
        member, colon, field = self.label.partition(":")
        if self.label and (not _MEMBER.fullmatch(member) or bool(colon) != bool(field)):
            raise ValueError(f"label {self.label!r} is neither MEMBER nor MEMBER:FIELD")

    @property
    def images(self) -> tuple[str, ...]:
        """The images' members, the anchor's first."""
        return (self.anchor, *self.positives)

    @property
    def stored(self) -> tuple[str, ...]:
        """All members that are read: the images, and the label's where there is one."""
        return (*self.images, self.label.partition(":")[0]) if self.label else self.images


@dataclass(frozen=True)
class Manifest:
    """What a set is. The sha256 of its canonical JSON is the set's id.

    positives: K; image_size: pixels a side; source: kind and size of what the anchors came from;
    plan_id, plan: what made it (empty for a set made elsewhere); classes: names of the labels;
    fingerprints: hardware and software it was made on; names: of the members of shards that another
    wrote, None where they are clsp's own.
    """

    positives: int
    image_format: str
    image_size: int
    samples: int
    shards: tuple[ShardFile, ...]
    anchors: bool = True
    source: dict[str, Any] = field(default_factory=dict)
    plan_id: str = ""
    plan: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    fingerprints: tuple[dict[str, str], ...] = ()
    names: Names | None = None

    def __post_init__(self) -> None:
        for name, most in (("positives", MOST_POSITIVES), ("image_size", MOST_SIDE)):
            count = getattr(self, name)
            if type(count) is not int or not 1 <= count <= most:
                raise ValueError(f"{name} is {count!r}, expected 1 to {most}")
        if self.image_format not in STORED_FORMATS:
            raise ValueError(f"image_format is {self.image_format!r}, expected png, webp or jpeg")
        for name in ("source", "plan"):
            if not isinstance(getattr(self, name), dict):
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected an object")
        if not all(isinstance(name, str) for name in self.classes or ()):
            raise ValueError("a class has a name that is no text")
        if type(self.anchors) is not bool or not isinstance(self.plan_id, str):
            raise ValueError(
                f"anchors is {self.anchors!r}, plan_id {self.plan_id!r}; expected true or false, "
                "and a text"
            )
        if not all(isinstance(print_, dict) for print_ in self.fingerprints):
            raise ValueError("a fingerprint is no object")
        if self.names is not None and (
            len(self.names.positives) != self.positives or not self.anchors
        ):
            raise ValueError(f"its names are of {len(self.names.positives)} positives an anchor")
        total = sum(shard.samples for shard in self.shards)
        if total != self.samples:
            raise ValueError(f"its shards hold {total} records, it says {self.samples}")
        if len({shard.name for shard in self.shards}) != len(self.shards):
            raise ValueError("a shard comes twice")

    def to_json(self) -> bytes:
        """Return the canonical JSON: sorted keys, two spaces, a line feed at the end."""
        values = {"format": FORMAT, "version": VERSION, **asdict(self)}
        if self.names is None:
            del values["names"]  # which earlier versions do not know
        return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()

    @cached_property
    def id(self) -> str:
        """The set's id, in hex."""
        return hashlib.sha256(self.to_json()).hexdigest()


def load_manifest(folder: Path) -> Manifest:
    """Read a set's manifest. Raises ShardError when there is none or it is not one of clsp's."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise ShardError(
            f"{folder} has no manifest.json: it is no finished shard set "
            "(`clsp shards index` makes one for a finished folder of shards)"
        )
    if (size := path.stat().st_size) > MOST_MANIFEST_BYTES:
        raise ShardError(
            f"{path} has {size:,} bytes, a manifest has at most {MOST_MANIFEST_BYTES:,}"
        )
    try:
        return parse_manifest(path.read_bytes())
    except ValueError as error:
        raise ShardError(f"{path} is not a manifest of a shard set: {error}") from error


def parse_manifest(data: bytes) -> Manifest:
    """Return the manifest that a JSON text holds. Raises ValueError for anything else."""
    try:
        values = json.loads(data)
        found = (values.pop("format"), values.pop("version"))
        if found != (FORMAT, VERSION):
            raise ValueError(f"format and version are {found}, expected {(FORMAT, VERSION)}")
        values["shards"] = tuple(ShardFile(**shard) for shard in values["shards"])
        values["classes"] = tuple(values["classes"]) if values["classes"] else None
        values["fingerprints"] = tuple(values["fingerprints"])
        if (names := values.get("names")) is not None:
            values["names"] = Names(**{**names, "positives": tuple(names["positives"])})
        manifest = Manifest(**values)
        # A member takes a header and at least one block of content.
        least = 2 * BLOCK * (manifest.positives + bool(manifest.anchors) + (names is None))
        for shard in manifest.shards:
            if shard.samples * least > shard.bytes:
                raise ValueError(
                    f"shard {shard.name}: {shard.samples} records do not fit in {shard.bytes} bytes"
                )
        return manifest
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(repr(error)) from error


def save_manifest(folder: Path, manifest: Manifest) -> None:
    """Write SHA256SUMS and then, last of all, `manifest.json`."""
    save_sums(folder, manifest)
    write_atomic(folder / "manifest.json", manifest.to_json())


def save_sums(folder: Path, manifest: Manifest) -> None:
    """Write SHA256SUMS, which `sha256sum -c` reads: of manifest, companions that are there, shards.

    To be called again when a companion was written.
    """
    companions = {
        name: file_sha256(folder / name) for name in COMPANIONS if (folder / name).is_file()
    }
    first, *shards = _known_sums(manifest).items()
    lines = [f"{sha256}  {name}\n" for name, sha256 in (first, *companions.items(), *shards)]
    path, data = folder / "SHA256SUMS", "".join(lines).encode()
    if not path.is_file() or path.read_bytes() != data:  # else a push would wait for the disk
        write_atomic(path, data)


def parse_sums(data: bytes, manifest: Manifest) -> dict[str, str]:
    """Return the sha256 of each companion that a set's SHA256SUMS names.

    Raises ValueError when it is not of this manifest or not whole: shards come last in it.
    """
    sums = {}
    for line in data.decode("ascii", "replace").splitlines():
        sha256, _, name = line.partition("  ")
        sums[name] = sha256
    for name, sha256 in _known_sums(manifest).items():
        if sums.get(name) != sha256:
            raise ValueError(f"the sha256 of {name} is {sums.get(name)}, expected {sha256}")
    return {name: sums[name] for name in COMPANIONS if _SHA256.fullmatch(sums.get(name, ""))}


def _known_sums(manifest: Manifest) -> dict[str, str]:
    sums = {"manifest.json": manifest.id}
    for shard in manifest.shards:
        sums[shard.name], sums[shard.index_name] = shard.sha256, shard.idx_sha256
    return sums


def parse_receipt(data: bytes, where: str) -> Receipt:
    """Return a receipt from its JSON. Raises ShardError for a garbled one, naming `where`."""
    try:
        values = json.loads(data)
        return Receipt(ShardFile(**values["shard"]), values["plan_id"], values["fingerprint"])
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(
            f"{where} is not a receipt: {error!r}; delete it to make its shard again"
        ) from error


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
