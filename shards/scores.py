"""How hard each positive is: a sidecar that leaves the set's bytes and id alone."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .check import ShardError
from .files import write_atomic
from .reader import ShardSet

FOLDER = "scores"

F32 = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class ScoresInfo:
    """What was measured: the set's id, the encoder's sha256, and the measure in words."""

    set: str
    encoder: str
    measure: str


def save_hardness(shards: ShardSet, values: F32, encoder: str, measure: str) -> Path:
    """Write SET/scores/hardness.npy and hardness.json, which comes last; return the former's path.

    values: (N, K), a larger one is harder; encoder: its sha256; measure: what the numbers are.
    Raises ValueError for another shape and for values that are not finite.
    """
    expected = (len(shards), shards.positives)
    if values.shape != expected:
        raise ValueError(f"hardness has shape {values.shape}, expected {expected}")
    if not np.isfinite(values).all():
        row, slot = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(f"the hardness of {shards.key(int(row))}.p{slot} is {values[row, slot]}")
    folder = shards.folder / FOLDER
    folder.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    np.save(buffer, values.astype(np.float32, copy=False))
    write_atomic(folder / "hardness.npy", buffer.getvalue())
    about = asdict(ScoresInfo(shards.id, encoder, measure))
    write_atomic(folder / "hardness.json", (json.dumps(about, indent=2) + "\n").encode())
    return folder / "hardness.npy"


def load_hardness(shards: ShardSet) -> tuple[F32, ScoresInfo]:
    """Return each positive's hardness, (N, K) float32 in record order, memory-mapped.

    Raises ShardError when the set has none, and when it is another set's or has another shape.
    """
    folder = shards.folder / FOLDER
    try:
        about = ScoresInfo(**json.loads((folder / "hardness.json").read_bytes()))
        values: F32 = np.load(folder / "hardness.npy", mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise ShardError(
            f"{error.filename} is missing: the set's positives have no hardness yet; "
            "`clsp evaluate positives SET --score` measures it"
        ) from error
    except (ValueError, TypeError) as error:
        raise ShardError(f"{folder} holds no hardness of positives: {error}") from error
    if about.set != shards.id:
        raise ShardError(
            f"{folder} is of set {about.set[:12]}, {shards.folder} is {shards.id[:12]}"
        )
    expected = (len(shards), shards.positives)
    if values.shape != expected or values.dtype != np.float32:
        raise ShardError(
            f"{folder / 'hardness.npy'} holds {values.dtype} {values.shape}, expected float32 "
            f"{expected}"
        )
    return values, about
