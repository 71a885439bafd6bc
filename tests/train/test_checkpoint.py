"""A checkpoint is whole or not there, and the last good one outlives whatever happens."""

from __future__ import annotations

import errno
import os
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from clsp.train import checkpoint
from clsp.train.checkpoint import CheckpointError, load_checkpoint, resume_run, save_checkpoint
from clsp.train.config import TrainConfig

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7)}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_saved_comes_back_and_the_earlier_one_goes(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, 5, TENSORS, {"set": "x"})
    save_checkpoint(tmp_path, 10, {name: value + 1 for name, value in TENSORS.items()}, {})
    tensors, about = load_checkpoint(tmp_path)
    assert about["step"] == 10
    assert all(torch.equal(tensors[name], TENSORS[name] + 1) for name in TENSORS)
    assert names(tmp_path) == ["step-0000010"]


@pytest.mark.parametrize("call", ["fsync", "rename", "open"])
def test_a_failing_disk_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    save_checkpoint(tmp_path, 5, TENSORS, {})

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if call == "rename":
        monkeypatch.setattr(Path, "rename", fail)
    elif call == "open":
        monkeypatch.setattr(checkpoint, "open", fail, raising=False)
    else:
        monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, 10, TENSORS, {})
    monkeypatch.undo()
    assert load_checkpoint(tmp_path)[1]["step"] == 5
    assert names(tmp_path) == ["step-0000005"]


@pytest.mark.parametrize("file", ["state.safetensors", "state.json"])
def test_a_damaged_one_is_passed_over_and_never_loaded(tmp_path: Path, file: str) -> None:
    save_checkpoint(tmp_path, 5, TENSORS, {})
    save_checkpoint(tmp_path / "other", 10, TENSORS, {})
    (tmp_path / "other" / "step-0000010").rename(tmp_path / "step-0000010")
    path = tmp_path / "step-0000010" / file
    path.write_bytes(path.read_bytes()[:-3])
    assert load_checkpoint(tmp_path)[1]["step"] == 5
    damaged = tmp_path / "step-0000005" / file
    damaged.write_bytes(damaged.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=r"step-0000010.*step-0000005.*delete the folder"):
        load_checkpoint(tmp_path)


def test_what_a_kill_left_half_written_is_removed(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, TENSORS, {})
    leftover = tmp_path / ".step-0000010.123-abcd.tmp"
    leftover.mkdir()
    (leftover / "state.safetensors").write_bytes(b"half")
    assert load_checkpoint(tmp_path)[1]["step"] == 5
    assert names(tmp_path) == ["step-0000005"]


def test_ranks_that_find_different_checkpoints_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two machines do whose --out is a folder of their own: one would begin anew."""
    save_checkpoint(tmp_path, 5, TENSORS, {"set": "x", "config": asdict(TrainConfig())})

    def gather(own: list[dict[str, str]]) -> list[dict[str, str]]:
        return [*own, dict.fromkeys(own[0], "none")]

    monkeypatch.setattr(checkpoint, "gather_object", gather)
    with pytest.raises(CheckpointError, match=r"rank 0 reads checkpoint \w{12}, rank 1 none; all"):
        resume_run(tmp_path, TrainConfig(), {"set": "x"}, {}, None, Accelerator())
