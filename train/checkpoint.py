"""Checkpoints: a folder that is whole under its name or not there, and a state to put into it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import load, save
from torch import Tensor, nn

from ..shards.files import fsync_folder, temporary_name
from .config import TrainConfig

# What a rerun may change without changing the encoder.
_FREE = ("save_every", "log_every")
_TENSORS, _ABOUT = "state.safetensors", "state.json"


class CheckpointError(ValueError):
    """A checkpoint that is damaged, or that belongs to another run; the message says which."""


def save_checkpoint(
    folder: Path, step: int, tensors: dict[str, Tensor], about: dict[str, Any]
) -> Path:
    """Write `folder/step-NNNNNNN` and then remove the earlier ones; return its path.

    about: plain JSON. Raises OSError when the disk is full; then the earlier checkpoint stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:07d}"
    data = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    state = {"step": step, "sha256": hashlib.sha256(data).hexdigest(), **about}
    temporary = temporary_name(path)
    try:
        temporary.mkdir()
        _write(temporary / _TENSORS, data)
        _write(temporary / _ABOUT, (json.dumps(state, indent=2) + "\n").encode())
        fsync_folder(temporary)
        shutil.rmtree(path, ignore_errors=True)  # a damaged one of the same step
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    fsync_folder(folder)
    _read(path)  # the earlier ones go only when this one is known to be good
    for other in _found(folder):
        if other != path:
            shutil.rmtree(other)
    return path


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return tensors and JSON of the newest whole checkpoint in `folder`, None when it has none.

    What a killed run left half-written is removed. Raises CheckpointError when there are
    checkpoints but every one is damaged.
    """
    for leftover in folder.glob(".step-*.tmp"):
        shutil.rmtree(leftover)
    problems = []
    for path in reversed(_found(folder)):
        try:
            return _read(path)
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError("; ".join(problems) + "; delete the folder to start again")
    return None


def _found(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        about: dict[str, Any] = json.loads((path / _ABOUT).read_text())
        data = (path / _TENSORS).read_bytes()
        expected = about["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {path}: {error!r}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise CheckpointError(f"checkpoint {path}: sha256 {found}, its JSON says {expected}")
    return load(data), about


def collect_state(
    modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Return all state of the modules and of the optimiser, by name.

    modules: by a prefix that keeps their names apart, none of them "optimizer".
    """
    tensors: dict[str, Tensor] = {}
    for prefix, module in modules.items():
        for name, value in module.state_dict().items():
            tensors[f"{prefix}.{name}"] = value
    for number, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if value is not None:  # SGD's buffer before the first step, or without momentum
                tensors[f"optimizer.{number}.{name}"] = value
    return tensors


def restore_state(
    tensors: dict[str, Tensor], modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer
) -> None:
    """Put back what `collect_state` returned. Raises CheckpointError when it does not fit."""
    for prefix, module in modules.items():
        start = f"{prefix}."
        own = {n.removeprefix(start): v for n, v in tensors.items() if n.startswith(start)}
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            raise CheckpointError(str(error)) from error
    values: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, number, own_name = name.split(".")
            values.setdefault(int(number), {})[own_name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": values})


def resume_run(
    folder: Path,
    config: TrainConfig,
    sources: Mapping[str, str],
    modules: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
) -> int:
    """Put the newest checkpoint's state back; return the steps done, 0 where there is none.

    sources: what the run reads, by name, each by its sha256; the checkpoint's JSON has them too.
    Raises CheckpointError for a checkpoint of another config or of other sources, and when ranks
    differ in what they find.
    """
    with accelerator.main_process_first():
        found = load_checkpoint(folder)
    _check_agreement(folder, {"checkpoint": "none" if found is None else found[1]["sha256"]})
    _check_agreement(folder, sources)
    if found is None:
        return 0
    tensors, about = found
    for name, source in sources.items():
        # An earlier version did not record all of them.
        if (before := about.get(name, source)) != source:
            raise CheckpointError(
                f"{folder} is of a run on {name} {before[:12]}, this {name} is {source[:12]}"
            )
    for name, value in asdict(config).items():
        before = about["config"].get(name)
        now = list(value) if isinstance(value, tuple) else value
        if name not in _FREE and before != now:
            raise CheckpointError(
                f"{folder} is of a run with {name} = {before}, not {now}; give another --out or "
                "the same settings"
            )
    restore_state(tensors, modules, optimizer)
    if accelerator.scaler is not None and about["scaler"]:
        accelerator.scaler.load_state_dict(about["scaler"])
    step: int = about["step"]
    return step


def _check_agreement(folder: Path, own: Mapping[str, str]) -> None:
    """Raise on every rank when ranks do not read the same: folders of a machine's own."""
    found: list[Mapping[str, str]] = gather_object([own])
    for rank, other in enumerate(found):
        for name, value in found[0].items():
            if other[name] != value:
                raise CheckpointError(
                    f"{folder}: rank 0 reads {name} {value[:12]}, rank {rank} {other[name][:12]}; "
                    "all machines have to see the same set and the same --out"
                )


def scaler_state(accelerator: Accelerator) -> dict[str, Any] | None:
    """Return the state of fp16's loss scaling, None without it."""
    return accelerator.scaler.state_dict() if accelerator.scaler is not None else None
