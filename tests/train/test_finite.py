"""A loss that is not finite stops the run, and says where."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from clsp.shards.reader import ShardSet
from clsp.train.checkpoint import load_checkpoint
from clsp.train.config import TrainConfig
from clsp.train.finite import FiniteCheck, NotFiniteError
from clsp.train.loop import train


def terms(value: float) -> dict[str, torch.Tensor]:
    return {"contrastive": torch.tensor(value), "positive": torch.tensor(0.5)}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_first_bad_step_and_its_terms_are_named(tmp_path: Path, value: float) -> None:
    check = FiniteCheck(tmp_path, at_once=False)
    for step, found in ((7, 1.0), (8, value), (9, value)):
        check.add(step, terms(found))
    with pytest.raises(NotFiniteError, match=rf"step 8: .* contrastive {value}, positive 0\.5"):
        check.raise_if_not()
    check.raise_if_not()  # nothing is left
    at_once = FiniteCheck(tmp_path, at_once=True)
    with pytest.raises(NotFiniteError, match="step 3"):
        at_once.add(3, terms(value))


def test_a_run_keeps_the_checkpoint_from_before(digit_set: ShardSet, tmp_path: Path) -> None:
    """A rate so large that the weights overflow within a few steps."""
    config = TrainConfig(
        arch="conv-tiny",
        positive="synthetic",
        hidden=16,
        dim=8,
        batch=8,
        epochs=20,
        lr=1e30,
        lr_warmup=3,
        save_every=1,
    )
    with pytest.raises(NotFiniteError, match=r"not finite.*checkpoint is step-00000\d\d"):
        train(config, digit_set.folder, tmp_path, cache=tmp_path)
    kept, _ = load_checkpoint(tmp_path / "checkpoints")
    assert len(kept) > 10
    assert all(value.isfinite().all() for value in kept.values())


def test_a_step_that_breaks_a_weight_reaches_no_checkpoint(
    digit_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss was finite, and so the next step's would be the first to show it."""
    step = torch.optim.SGD.step

    def broken(self: torch.optim.SGD, *arguments: object) -> None:
        step(self, *arguments)
        self.param_groups[0]["params"][3].data[0] = math.inf

    monkeypatch.setattr(torch.optim.SGD, "step", broken)
    config = TrainConfig(arch="conv-tiny", hidden=16, dim=8, batch=8, epochs=1, save_every=1)
    with pytest.raises(NotFiniteError, match=r"step 1: encoder\.\S+ is not finite .*is the start"):
        train(config, digit_set.folder, tmp_path, cache=tmp_path)
    assert load_checkpoint(tmp_path / "checkpoints") is None
