"""Files that are either whole or not there."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX, _SUFFIX = ".", ".tmp"


def temporary_name(path: Path) -> Path:
    """Return a name beside `path` that no other writer uses and `sweep_temporaries` finds."""
    return path.with_name(f"{_PREFIX}{path.name}.{os.getpid()}-{secrets.token_hex(4)}{_SUFFIX}")


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old file or the new one, never a part.

    Raises OSError (disk full, no permission); then `path` is untouched and nothing is left behind.
    """
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise
        # Swept away by another process that finishes the same set: once more.
        return write_atomic(path, data)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a hidden folder beside `path` that becomes it at the end, and goes when that fails.

    Raises FileExistsError for a `path` that holds something.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} is not empty; give a new folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
        made = Path(scratch) / "new"
        made.mkdir()
        yield made
        os.replace(made, path)
    fsync_folder(path.parent)


def sweep_temporaries(folder: Path) -> int:
    """Delete what killed writers left in `folder`; return how many files that were."""
    leftovers = list(folder.glob(f"{_PREFIX}*{_SUFFIX}"))
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    return len(leftovers)
