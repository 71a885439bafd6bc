"""Where a set is read from: the bytes of its files by name, from any offset on."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from .check import ShardError

PIECE = 1 << 20  # bytes that are read, hashed and written at a time
TIMEOUT = 30.0  # seconds without a byte, after which a connection counts as broken
_S3_PIECE = 16 << 20  # each is a request of its own
_HUB = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?/?")
_QUERY = re.compile(r"\?[^\s')]+")  # of the signed address that a server redirected to
_PASSING = {408, 416, 425, 429}  # HTTP answers that may pass, beside those from 500 on


class Interrupted(OSError):
    """Bytes did not come, or not all of them, or wrong ones; another try may bring them."""


class Missing(ShardError):
    """There is nothing of that name, or nothing at all, at the address."""


class Reply(NamedTuple):
    """Bytes of a file from offset `start` on, which is 0 where the other side knows no ranges."""

    start: int
    pieces: Iterator[bytes]


class Source(Protocol):
    """A place that a set is read from. It can be pickled, forked, and used by many threads."""

    @property
    def address(self) -> str:
        """The place as the user gave it."""

    def open(self, name: str, start: int = 0) -> Reply:
        """Open a file of the set; both this and reading the reply may raise.

        Interrupted: another try may help. ShardError: it will not (missing, not allowed).
        """


def is_remote(address: str | Path) -> bool:
    """True for an address that is not a path."""
    return "://" in str(address)


def refuse_secrets(address: str) -> None:
    """Raise ShardError for an address with a name and password: it is printed, and kept in files.

    The message does not repeat them.
    """
    if is_remote(address) and "@" in urlsplit(address).netloc:
        raise ShardError(
            f"{bare_url(address)}: expected no name and password in an address; write them into "
            "~/.netrc, where they are found"
        )


def bare_url(url: str) -> str:
    """Return an address less name and password, and less a query, which may hold a signature."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def open_source(address: str | Path) -> Source:
    """Return the source at a path, `http(s)://`, `s3://` or `hf://datasets/OWNER/NAME@REVISION`.

    Raises ShardError for another kind of address, or a revision that is not there.
    """
    text = str(address)
    refuse_secrets(text)
    if text.startswith(("http://", "https://")):
        if set(text) & {"?", "#"}:
            raise ShardError(
                f"{bare_url(text)}: expected an address that names of files can be added "
                "to, without ? and #"
            )
        return HttpSource(text, text.rstrip("/") + "/")
    if text.startswith("s3://"):
        s3_files(text)  # Say now, not in a worker, what is missing.
        return S3Source(text)
    if text.startswith("hf://"):
        return _open_hub(text)
    if is_remote(text):
        raise ShardError(
            f"{text}: expected a path, http(s)://HOST/PATH, s3://BUCKET/PREFIX or "
            "hf://datasets/OWNER/NAME@REVISION"
        )
    return FolderSource(Path(text))


@dataclass(frozen=True)
class FolderSource:
    """A folder, such as one on another machine that is mounted."""

    folder: Path

    @property
    def address(self) -> str:
        return str(self.folder)

    def open(self, name: str, start: int = 0) -> Reply:
        if not (self.folder / name).is_file():  # To open a named pipe is to wait for ever.
            raise Missing(f"{self.folder / name}: there is no such file")
        file = open(self.folder / name, "rb")  # noqa: SIM115 the reply closes it
        start = min(start, os.fstat(file.fileno()).st_size)
        return Reply(start, self._pieces(file, start))

    @staticmethod
    def _pieces(file: Any, start: int) -> Iterator[bytes]:
        with file:
            file.seek(start)
            while piece := file.read(PIECE):
                yield piece


@dataclass(frozen=True)
class HttpSource:
    """A web server. base: the address in front of names; headers: sent with every request."""

    address: str
    base: str
    headers: dict[str, str] = field(default_factory=dict, repr=False)

    def open(self, name: str, start: int = 0) -> Reply:
        import requests

        # Not compressed: what is hashed is what the server holds. A connection for each file: a
        # kept one would be shared by forked readers.
        headers = {**self.headers, "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        url = self.base + name
        try:
            response = requests.get(url, headers=headers, stream=True, timeout=TIMEOUT)
        except requests.RequestException as error:
            raise Interrupted(f"{url}: {_QUERY.sub('?...', str(error))}") from error
        if url.startswith("https://") and not response.url.startswith("https://"):
            response.close()
            raise ShardError(
                f"{url}: the server redirects to {bare_url(response.url)}, unencrypted"
            )
        status = response.status_code
        first = f"bytes {start}-"
        if start and (
            status == 416
            or (status == 206 and not response.headers.get("Content-Range", "").startswith(first))
        ):
            response.close()
            return self.open(name)
        if status not in (200, 206):
            response.close()
            answer = f"{url}: the server answers {status} {response.reason}"
            if status in _PASSING or status >= 500:
                raise Interrupted(answer)
            raise Missing(answer) if status in (404, 410) else ShardError(answer)
        return Reply(start if status == 206 else 0, self._pieces(url, response))

    @staticmethod
    def _pieces(url: str, response: Any) -> Iterator[bytes]:
        import urllib3

        with response:
            try:
                yield from response.raw.stream(PIECE, decode_content=False)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise Interrupted(f"{url}: the connection broke: {error}") from error


@dataclass(frozen=True)
class S3Source:
    """A prefix of an S3 bucket; credentials and endpoint come from AWS's own variables."""

    address: str

    def open(self, name: str, start: int = 0) -> Reply:
        path = f"{self.address.rstrip('/')}/{name}"
        with s3_errors(path):
            size = int(s3_files(self.address).info(path)["size"])
        start = start if start <= size else 0
        return Reply(start, self._pieces(path, start, size))

    def _pieces(self, path: str, start: int, size: int) -> Iterator[bytes]:
        while start < size:
            with s3_errors(path):
                end = min(start + _S3_PIECE, size)
                piece: bytes = s3_files(self.address).cat_file(path, start=start, end=end)
            yield piece
            start = end


def s3_files(address: str) -> Any:
    """Return s3fs's file system, one for each process. Raises ShardError without the extra."""
    try:
        import s3fs
    except ImportError as error:
        raise ShardError(f"{address} needs the extra s3: pip install 'clsp[s3]'") from error
    return s3fs.S3FileSystem(use_listings_cache=False)


@contextmanager
def s3_errors(path: str) -> Iterator[None]:
    """Turn what s3fs raises into Interrupted or ShardError."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except FileNotFoundError as error:
        raise Missing(f"{path}: {error}") from error
    except (PermissionError, NoCredentialsError) as error:
        raise ShardError(f"{path}: {error}") from error
    except (OSError, BotoCoreError, ClientError) as error:
        raise Interrupted(f"{path}: {error}") from error


def split_hub(address: str) -> tuple[str, str | None]:
    """Return OWNER/NAME and the revision of an address on the Hugging Face Hub."""
    found = _HUB.fullmatch(address)
    if found is None:
        raise ShardError(f"{address}: expected hf://datasets/OWNER/NAME or .../NAME@REVISION")
    return found[1], found[2]


@contextmanager
def hub_errors(address: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into ShardError."""
    from huggingface_hub import errors

    # The base of all its network errors: of whichever HTTP library this release of it uses.
    http_error: type[Exception] = vars(errors)["HTTPError"]
    try:
        yield
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise Missing(f"{address}: {error}") from error
    except (http_error, errors.OfflineModeIsEnabled) as error:
        raise ShardError(f"{address}: {error}") from error


def _open_hub(address: str) -> HttpSource:
    """Return the source of a Hub repository at one commit, whatever is pushed meanwhile."""
    from huggingface_hub import HfApi, get_token, hf_hub_url

    repository, revision = split_hub(address)
    with hub_errors(address):
        commit = HfApi().dataset_info(repository, revision=revision).sha
    name = "manifest.json"
    first = hf_hub_url(repository, name, repo_type="dataset", revision=commit)
    token = get_token()  # It goes to the Hub; a redirect to another host leaves it behind.
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return HttpSource(address, first.removesuffix(name), headers)
