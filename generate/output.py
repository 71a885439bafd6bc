"""Where a set is written: a folder, or a bucket of an object store, by the same few verbs.

Names are relative to the set, with forward slashes. A write is either whole or not there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ..shards.check import ShardError
from ..shards.files import sweep_temporaries, write_atomic
from ..shards.manifest import COMPANIONS, Manifest, ShardFile, file_sha256, save_manifest
from ..shards.record import Record
from ..shards.targets import Upload, in_base64, s3_checksum, s3_upload
from ..shards.writer import write_shard

_STAGING = "clsp-shard-"  # a bucket's shards are built in a temporary folder of this name


class Entry(NamedTuple):
    """One file of an output: bytes, and when it was written, in seconds since 1970."""

    size: int
    modified: float


class Output(Protocol):
    """The place a set is written to."""

    def read(self, name: str) -> bytes | None:
        """Return a small file's bytes, or None where there is none."""

    def read_all(self, folder: str) -> dict[str, bytes]:
        """Return the small files of a folder by their names inside it."""

    def entries(self, folder: str) -> dict[str, Entry]:
        """Return what lies in a folder, by its name there; unfinished files are not listed."""

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, in place of the one that may be there."""

    def remove(self, name: str) -> None:
        """Delete a file that may be there."""

    def add_shard(self, name: str, records: Iterable[Record], positives: int) -> ShardFile:
        """Write a shard and its index; see `write_shard`."""

    def check_shard(self, shard: ShardFile) -> None:
        """Raise ShardError when the shard or its index is not what `shard` says."""

    def local_shard(self, shard: ShardFile) -> AbstractContextManager[Path]:
        """Return a folder on this machine that has the shard and its index as in the set."""

    def publish(self, manifest: Manifest) -> None:
        """Sweep what killed writers left, then write checksums and, last, the manifest."""


def open_output(place: str) -> Output:
    """Return the output at a path or at `s3://BUCKET/PREFIX`. Raises ValueError for others."""
    if place.startswith("s3://"):
        return Bucket(place)
    if "://" in place:
        raise ValueError(f"--out {place}: expected a path or s3://BUCKET/PREFIX")
    return Folder(Path(place))


def _index(name: str) -> str:
    return f"{name.removesuffix('.tar')}.idx"


class Folder:
    """A folder of a file system that all workers see."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def read(self, name: str) -> bytes | None:
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None

    def read_all(self, folder: str) -> dict[str, bytes]:
        found = ((name, self.read(f"{folder}/{name}")) for name in self.entries(folder))
        return {name: data for name, data in found if data is not None}

    def entries(self, folder: str) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self.root / folder) as items:
            for item in items:
                with contextlib.suppress(FileNotFoundError):  # Gone since it was listed.
                    if not item.name.startswith("."):
                        status = item.stat()
                        found[item.name] = Entry(status.st_size, status.st_mtime)
        return found

    def write(self, name: str, data: bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)

    def remove(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def add_shard(self, name: str, records: Iterable[Record], positives: int) -> ShardFile:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_shard(path, records, positives)

    def check_shard(self, shard: ShardFile) -> None:
        for name, sha256 in ((shard.name, shard.sha256), (_index(shard.name), shard.idx_sha256)):
            path = self.root / name
            if not path.exists():
                raise ShardError(f"{name} is missing")
            found = file_sha256(path)
            if found != sha256:
                raise ShardError(f"{name}: its sha256 is {found}, its receipt says {sha256}")

    def local_shard(self, shard: ShardFile) -> AbstractContextManager[Path]:
        return nullcontext(self.root)

    def publish(self, manifest: Manifest) -> None:
        for folder in ("", "data", "receipts"):
            sweep_temporaries(self.root / folder)
        for folder in ("running", "failures"):
            shutil.rmtree(self.root / folder, ignore_errors=True)
        save_manifest(self.root, manifest)


class Bucket:
    """A prefix of an S3 bucket; credentials and endpoint come from AWS's own variables.

    A shard is built on this machine and uploaded in one request with its sha256, which the store
    compares; an object is visible when it is whole. An object that is there is never replaced.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._place = self.url.removeprefix("s3://")
        if not all(self._place.partition("/")[::2]):
            raise ValueError(f"--out {url}: expected s3://BUCKET/PREFIX")
        _ = self._files  # Say now, not in a worker, what is missing.

    def __str__(self) -> str:
        return self.url

    def __getstate__(self) -> dict[str, str]:
        return {"url": self.url, "_place": self._place}

    @cached_property
    def _files(self) -> Any:
        try:
            import s3fs
        except ImportError as error:
            raise ValueError(
                f"--out {self.url} needs the extra s3: pip install 'clsp[s3]'"
            ) from error
        # No cache of listings: other machines write here too.
        return s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)

    def _path(self, name: str) -> str:
        return f"{self._place}/{name}"

    def read(self, name: str) -> bytes | None:
        try:
            data: bytes = self._files.cat_file(self._path(name))
            return data
        except FileNotFoundError:
            return None

    def read_all(self, folder: str) -> dict[str, bytes]:
        paths = [self._path(f"{folder}/{name}") for name in self.entries(folder)]
        found = self._files.cat(paths, on_error="omit") if paths else {}  # many at a time
        return {path.rpartition("/")[2]: data for path, data in found.items()}

    def entries(self, folder: str) -> dict[str, Entry]:
        try:
            found = self._files.ls(self._path(folder), detail=True, refresh=True)
        except FileNotFoundError:
            return {}
        return {
            item["name"].rpartition("/")[2]: Entry(item["size"], item["LastModified"].timestamp())
            for item in found
            if item["type"] == "file"
        }

    def write(self, name: str, data: bytes) -> None:
        self._files.pipe_file(self._path(name), data)

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self._path(name))

    def add_shard(self, name: str, records: Iterable[Record], positives: int) -> ShardFile:
        _sweep_staging()
        with tempfile.TemporaryDirectory(prefix=f"{_STAGING}{os.getpid()}-") as folder:
            path = Path(folder) / name
            path.parent.mkdir()
            shard = write_shard(path, records, positives)
            self._upload(path.with_suffix(".idx"), _index(name), shard.idx_sha256)
            self._upload(path, name, shard.sha256)
        return shard

    def _upload(self, path: Path, name: str, sha256: str) -> None:
        s3_upload(self._files, Upload(name, path, sha256), f"{self.url}/{name}", replace=False)

    def check_shard(self, shard: ShardFile) -> None:
        for name, sha256 in ((shard.name, shard.sha256), (_index(shard.name), shard.idx_sha256)):
            found = s3_checksum(self._files, f"{self.url}/{name}")
            if found != in_base64(sha256):
                raise ShardError(
                    f"{self.url}/{name}: its sha256 (base64) is {found}, "
                    f"its receipt says {in_base64(sha256)}"
                )

    @contextmanager
    def local_shard(self, shard: ShardFile) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix=f"{_STAGING}{os.getpid()}-") as folder:
            (Path(folder) / "data").mkdir()
            for name in (shard.name, _index(shard.name)):
                self._files.get_file(self._path(name), str(Path(folder) / name))
            yield Path(folder)

    def publish(self, manifest: Manifest) -> None:
        for folder in ("running", "failures"):
            for name in self.entries(folder):
                self.remove(f"{folder}/{name}")
        with tempfile.TemporaryDirectory() as folder:
            # SHA256SUMS covers what lies beside the shards, as in a folder.
            for name in COMPANIONS:
                data = self.read(name)
                if data is not None:
                    (Path(folder) / name).parent.mkdir(exist_ok=True)
                    (Path(folder) / name).write_bytes(data)
            save_manifest(Path(folder), manifest)
            for name in ("SHA256SUMS", "manifest.json"):
                self.write(name, (Path(folder) / name).read_bytes())


def _sweep_staging() -> None:
    """Delete the staging folders of processes of this machine that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_STAGING}*"):
        number = folder.name.removeprefix(_STAGING).partition("-")[0]
        if number.isdigit() and not Path(f"/proc/{number}").exists():
            shutil.rmtree(folder, ignore_errors=True)
