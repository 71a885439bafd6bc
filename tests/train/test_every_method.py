"""Every method by the command, stopped half-way and run again."""

from __future__ import annotations

import typing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from clsp.shards.reader import ShardSet
from clsp.train import load_encoder, loop
from clsp.train.__main__ import main
from clsp.train.checkpoint import load_checkpoint
from clsp.train.config import TrainConfig
from clsp.train.encoder import load_projector
from clsp.train.objectives import make_objective

METHODS = typing.get_args(typing.get_type_hints(TrainConfig)["method"])
TINY = ["--arch=conv-tiny", "--hidden=16", "--dim=8", "--epochs=1", "--batch=8", "--queue=16"]
FLAGS = [*TINY, "--prototypes=12", "--save-every=2", "--log-every=5", "--trackers="]
# As the published methods have their heads, and their crops.
MORE = {
    "byol": ["--projector-bn=hidden", "--predictor-hidden=24"],
    "mocov3": ["--projector-bn=centred", "--predictor-bn=centred", "--solarize-views=second"],
    "nnclr": ["--layers=3", "--projector-bn=all"],
    "all4one": ["--layers=3", "--projector-bn=all", "--blur-p=0.5"],
    "vicreg": ["--layers=3", "--projector-bn=hidden"],
    "swav": ["--local-crops=2", "--crop-min=0.14"],
    "dino": ["--local-crops=3", "--crop-min=0.4", "--local-size=6", "--chunk=4"],
    "moco": ["--no-augment-positives", "--bn-mode=split"],
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def places(method: str) -> tuple[str, ...]:
    config = TrainConfig(method=method, batch=8, queue=16, dim=8, hidden=16, prototypes=12)
    return make_objective(config, nn.Linear(8, 8)).places


def run(shards: ShardSet, cache: Path, out: Path, *flags: str) -> Result:
    where = [f"--set={shards.folder}", f"--out={out}", f"--cache={cache}"]
    return CliRunner().invoke(main, [*where, *FLAGS, *flags])


@pytest.mark.parametrize("method", METHODS)
def test_a_method_goes_on_where_it_stopped(
    digit_set: ShardSet,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    """Two positives, where the method puts them best; the disk is full after two steps of five."""
    flags = [f"--method={method}", "--positive=synthetic", "--positives=2"]
    flags += [f"--positive-as={places(method)[-1]}", *MORE.get(method, [])]
    result = run(digit_set, cache, tmp_path / "whole", *flags)
    assert result.exit_code == 0, result.output
    save = loop.save_checkpoint

    def save_and_stop(*arguments: typing.Any) -> None:
        save(*arguments)
        raise OSError("stopped here")

    with monkeypatch.context() as patched:
        patched.setattr(loop, "save_checkpoint", save_and_stop)
        result = run(digit_set, cache, tmp_path / "stopped", *flags)
    assert result.exit_code == 1
    assert "stopped here" in result.output
    assert load_checkpoint(tmp_path / "stopped/checkpoints")[1]["step"] == 2
    result = run(digit_set, cache, tmp_path / "stopped", *flags)
    assert result.exit_code == 0, result.output
    whole, gone_on = (
        load_checkpoint(tmp_path / name / "checkpoints")[0] for name in ("whole", "stopped")
    )
    assert whole.keys() == gone_on.keys()
    assert all(torch.equal(whole[name], gone_on[name]) for name in whole)
    features = load_encoder(tmp_path / "stopped/encoder")(torch.randn(2, 3, 8, 8))
    assert load_projector(tmp_path / "stopped/encoder")(features).shape == (2, 8)


WHERE = {
    "view": "supcon stablerep mv-infonce mv-dhel cacr byol mocov3 dino swav barlow vicreg vibcreg",
    "neighbour": "nnclr all4one",
    "target": "byol mocov3",
}


@pytest.mark.parametrize("method", METHODS)
def test_a_positive_enters_where_the_method_has_a_place(method: str) -> None:
    """Its term goes beside every loss; an error about another place says which ones there are."""
    expected = ["term", *(place for place, names in WHERE.items() if method in names.split())]
    assert list(places(method)) == expected
    config = TrainConfig(
        method=method, positive="synthetic", batch=8, queue=16, dim=8, hidden=16, prototypes=12
    )
    for place in ("term", *WHERE):
        config = replace(config, positive_as=place)
        if place in expected:
            make_objective(config, nn.Linear(8, 8))
            continue
        with pytest.raises(ValueError, match=f"positive-as is {place}, but in {method} a positive"):
            make_objective(config, nn.Linear(8, 8))
    config = replace(config, positive_as="term", local_crops=2, crop_min=0.2)
    if "view" in expected:
        make_objective(config, nn.Linear(8, 8))
    else:
        with pytest.raises(ValueError, match=f"local_crops is 2, but {method} takes two views"):
            make_objective(config, nn.Linear(8, 8))
