"""Results that are measured once: what is done is found again, and a kill costs one result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..shards.files import write_atomic
from ..train.encoder import Encoder


def kept_path(folder: Path, name: str, about: Mapping[str, Any]) -> Path:
    """Return the file for a result: its name, and a hash of all that decides it (JSON values)."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return folder / f"{name}-{digest[:12]}.json"


def keep(
    folder: Path, name: str, about: Mapping[str, Any], measure: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Return a result from its file, or what `measure` finds, which is written there first.

    Raises ValueError for a file that holds no result.
    """
    path = kept_path(folder, name, about)
    if path.exists():
        try:
            return dict(json.loads(path.read_bytes())["result"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no result: {error!r}; remove it") from error
    result = measure()
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps({"about": about, "result": result}, indent=2) + "\n").encode())
    return result


def encoder_facts(encoder: Encoder) -> dict[str, Any]:
    """Return what decides the function that an encoder is, as JSON values."""
    return {
        "encoder": encoder.sha256,
        "image_size": encoder.image_size,
        "mean": encoder.mean,
        "std": encoder.std,
    }
