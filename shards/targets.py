"""Where a set is copied to: a folder, a bucket, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from .check import ShardError
from .files import fsync_folder, temporary_name
from .manifest import file_sha256
from .remote import (
    PIECE,
    hub_errors,
    is_remote,
    refuse_secrets,
    s3_errors,
    s3_files,
    split_hub,
)

THREADS = 8  # files in flight at once: some are read and hashed while the disk writes others
_LARGEST_S3 = 5 * 2**30  # bytes S3 takes in one request, and so under one checksum
_FILES_A_COMMIT = 64

Item = TypeVar("Item")


class Upload(NamedTuple):
    """A file to be copied: its name in the set, where it is, and what its bytes must be."""

    name: str
    path: Path
    sha256: str


class Target(Protocol):
    """A place that a set is copied to."""

    def put(self, files: list[Upload], replace: bool, done: Callable[[], object]) -> None:
        """Copy files, each whole or not at all, and none that is there already.

        replace: what to do with a file that is there with other bytes: replace it, or raise.
        done: called after each file. Raises ShardError for a file whose bytes are not as its
        sha256 says; then it is not at the target.
        """


def open_target(address: str) -> Target:
    """Return the target at a path, `s3://BUCKET/PREFIX` or `hf://datasets/OWNER/NAME[@BRANCH]`."""
    refuse_secrets(address)
    if address.startswith("s3://"):
        return S3Target(address.rstrip("/"))
    if address.startswith("hf://"):
        return HubTarget(address)
    if is_remote(address):
        raise ShardError(
            f"{address}: expected a path, s3://BUCKET/PREFIX or hf://datasets/OWNER/NAME@BRANCH"
        )
    return FolderTarget(Path(address))


def in_threads(work: Callable[[Item], object], items: Iterable[Item]) -> None:
    """Call `work` on every item, a few at a time; the first error ends it and is raised."""
    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _differs(place: str, found: object, expected: str) -> ShardError:
    return ShardError(f"{place}: its sha256 is {found}, expected {expected}")


def _taken(place: str) -> ShardError:
    return ShardError(f"{place} is there with other bytes; delete it if it is not wanted")


@dataclass(frozen=True)
class FolderTarget:
    """A folder, such as one that is mounted from another machine."""

    folder: Path

    def put(self, files: list[Upload], replace: bool, done: Callable[[], object]) -> None:
        folders = {(self.folder / file.name).parent for file in files}
        for path in folders:
            path.mkdir(parents=True, exist_ok=True)

        def copy(file: Upload) -> None:
            path = self.folder / file.name
            if not path.exists() or file_sha256(path) != file.sha256:
                if path.exists() and not replace:
                    raise _taken(str(path))
                _copy(file, path)
            done()

        in_threads(copy, files)
        for path in folders:  # once for all: each costs the disk a commit of its journal
            fsync_folder(path)


def _copy(file: Upload, path: Path) -> None:
    temporary, digest = temporary_name(path), hashlib.sha256()
    try:
        with open(file.path, "rb") as source, open(temporary, "wb") as target:
            while piece := source.read(PIECE):
                digest.update(piece)
                target.write(piece)
            if digest.hexdigest() != file.sha256:
                raise _differs(str(file.path), digest.hexdigest(), file.sha256)
            target.flush()
            os.fsync(target.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class S3Target:
    """A prefix of a bucket. The store compares each object with its sha256, and keeps that."""

    address: str

    def put(self, files: list[Upload], replace: bool, done: Callable[[], object]) -> None:
        def upload(file: Upload) -> None:
            place = f"{self.address}/{file.name}"
            with s3_errors(place):
                bucket = s3_files(place)
                if s3_checksum(bucket, place) != in_base64(file.sha256):
                    _compare(file)
                    s3_upload(bucket, file, place, replace=replace)
            done()

        in_threads(upload, files)


def s3_upload(files: Any, file: Upload, place: str, *, replace: bool) -> None:
    """Upload a file with `files`, an s3fs file system, to `s3://BUCKET/KEY`: whole or not at all.

    One request, whose sha256 the store compares and keeps; nothing happens where the same bytes
    are. Raises ShardError for a file that is larger than S3 takes, and, unless `replace`, where
    other bytes are.
    """
    size, checksum = file.path.stat().st_size, in_base64(file.sha256)
    if size > _LARGEST_S3:
        raise ShardError(f"{file.path} has {size} bytes, S3 takes 5 GiB; make smaller shards")
    try:
        files.put_file(
            str(file.path),
            place,
            mode="overwrite" if replace else "create",
            chunksize=_LARGEST_S3,
            ChecksumAlgorithm="SHA256",
            ChecksumSHA256=checksum,
        )
    except FileExistsError:
        # Ours, if an earlier one died after its upload.
        if s3_checksum(files, place) != checksum:
            raise _taken(place) from None


def s3_checksum(files: Any, place: str) -> str | None:
    """Return an object's sha256 in base64, "" where the store knows none, None without one."""
    bucket, _, key = place.removeprefix("s3://").partition("/")
    try:
        head = files.call_s3("head_object", Bucket=bucket, Key=key, ChecksumMode="ENABLED")
    except FileNotFoundError:
        return None
    return str(head.get("ChecksumSHA256", ""))


def in_base64(sha256: str) -> str:
    """Return a hex sha256 as S3 writes it."""
    return base64.b64encode(bytes.fromhex(sha256)).decode()


@dataclass(frozen=True)
class HubTarget:
    """A dataset repository, made if it is not there. The Hub's own hashes skip what it has."""

    address: str

    def put(self, files: list[Upload], replace: bool, done: Callable[[], object]) -> None:
        from huggingface_hub import CommitOperationAdd, HfApi

        repository, branch = split_hub(self.address)
        hub = HfApi()
        with hub_errors(self.address):
            hub.create_repo(repository, repo_type="dataset", exist_ok=True)
            if branch is not None:
                hub.create_branch(repository, branch=branch, repo_type="dataset", exist_ok=True)
            for start in range(0, len(files), _FILES_A_COMMIT):
                batch = files[start : start + _FILES_A_COMMIT]
                in_threads(_compare, batch)
                more = f" to {batch[-1].name}" if len(batch) > 1 else ""
                hub.create_commit(
                    repository,
                    [CommitOperationAdd(file.name, str(file.path)) for file in batch],
                    commit_message=f"Add {batch[0].name}{more}",
                    repo_type="dataset",
                    revision=branch,
                )
                for _ in batch:
                    done()


def _compare(file: Upload) -> None:
    found = file_sha256(file.path)
    if found != file.sha256:
        raise _differs(str(file.path), found, file.sha256)
