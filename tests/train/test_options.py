"""Options of a run: what is refused, and that each of them reaches the run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from clsp.shards.reader import ShardSet
from clsp.train import load_encoder
from clsp.train.checkpoint import load_checkpoint
from clsp.train.config import TrainConfig
from clsp.train.loop import train
from clsp.train.options import RunOptions
from clsp.train.stream import Stream

TINY = TrainConfig(arch="conv-tiny", hidden=16, dim=8, epochs=1, batch=8)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"workers": -2}, "workers is -2"),
        ({"knn_every": 0}, "knn_every is 0"),
        ({"trackers": ("tensorbord",)}, "'tensorbord' is none of Accelerate's: .*tensorboard"),
        ({"trackers": ("dvclive",)}, "'dvclive' is not installed: pip install dvclive"),
    ],
)
def test_an_option_out_of_range_is_refused(setting: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunOptions(**setting)


def test_precision_and_layout_change_the_last_digits_only(
    digit_set: ShardSet, tmp_path: Path
) -> None:
    """By the command, because a process has one precision."""
    train(TINY, digit_set.folder, tmp_path / "plain", cache=tmp_path)
    flags = ["--arch=conv-tiny", "--hidden=16", "--dim=8", "--epochs=1", "--batch=8"]
    flags += ["--precision=bf16", "--layout=channels_last", f"--cache={tmp_path}"]
    places = [f"--set={digit_set.folder}", f"--out={tmp_path / 'bf16'}"]
    subprocess.run([sys.executable, "-m", "clsp.train", *places, *flags], check=True)
    states = [load_checkpoint(tmp_path / name / "checkpoints")[0] for name in ("plain", "bf16")]
    plain, half = (
        torch.cat([state[name].flatten() for name in sorted(state) if name.endswith(".weight")])
        for state in states
    )
    assert not torch.equal(plain, half)
    assert (plain - half).norm() < 0.05 * plain.norm()
    images = torch.randn(2, 3, 8, 8)
    assert load_encoder(tmp_path / "bf16/encoder")(images).dtype == torch.float32


def test_fp16_on_a_cpu_is_refused(digit_set: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fp16 needs a GPU; bf16 works on a CPU"):
        train(
            TINY, digit_set.folder, tmp_path, cache=tmp_path, options=RunOptions(precision="fp16")
        )


@pytest.mark.parametrize(("ranks", "workers"), [(1, 8), (4, 4), (32, 1)])
def test_the_ranks_of_a_machine_share_its_cores(
    digit_set: ShardSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ranks: int,
    workers: int,
) -> None:
    config, options = TrainConfig(batch=8), RunOptions()
    stream = Stream(config, digit_set.folder, tmp_path, tmp_path, 1, options, Accelerator(cpu=True))
    assert stream._workers() == 0  # it is cached
    stream.pixels = None
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert stream._workers() == workers


def test_a_compiled_run_is_the_plain_one_with_the_same_names(
    digit_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a backend that runs the captured graph as it is: making code of it takes a minute."""
    own, seen = nn.Module.compile, []

    def compile(self: nn.Module) -> None:
        seen.append(self)
        own(self, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", compile)
    states = []
    for chosen in (False, True):
        out = tmp_path / str(chosen)
        options = RunOptions(compile=chosen)
        train(TINY, digit_set.folder, out, cache=tmp_path, options=options)
        states.append(load_checkpoint(out / "checkpoints")[0])
    assert len(seen) == 1
    assert seen[0]._compiled_call_impl is not None
    assert states[0].keys() == states[1].keys()
    for name in states[0]:
        torch.testing.assert_close(states[1][name], states[0][name], atol=1e-5, rtol=1e-4)


def test_no_tracker_leaves_no_folder(digit_set: ShardSet, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train(TINY, digit_set.folder, out, cache=tmp_path, options=RunOptions(trackers=()))
    assert not (out / "tensorboard").exists()
    assert (out / "metrics.jsonl").exists()
