"""Gradient caching against one pass over the whole batch."""

from __future__ import annotations

import typing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from clsp.shards.reader import ShardSet
from clsp.train import encoder
from clsp.train.checkpoint import load_checkpoint
from clsp.train.chunks import ChunkedForward, in_chunks
from clsp.train.config import TrainConfig, learning_rate
from clsp.train.encoder import ProjectedEncoder
from clsp.train.loop import train
from clsp.train.objectives import Beside, loss_terms, make_objective
from clsp.train.objectives.objective import unit
from clsp.train.objectives.positive import positive_term
from clsp.train.objectives.simclr import nt_xent
from clsp.train.tuples import TupleBatches
from clsp.train.views import make_views

VIT = TrainConfig(
    arch="timm:test_vit", stem="imagenet", positive="synthetic", hidden=16, dim=8, batch=8, epochs=1
)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    """A config of 8x8 images whose network has no batch norm."""

    def build(*_: object) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())

    monkeypatch.setattr(encoder, "build_backbone", build)
    return replace(VIT, arch="conv-tiny", lr=0.1, lr_warmup=0)


def loss(z: list[torch.Tensor]) -> torch.Tensor:
    first, second, third = map(unit, z)
    return nt_xent(first, second, 0.2) + positive_term(first, third)


def gradients(model: nn.Module) -> torch.Tensor:
    found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat([torch.zeros(1), *found])


@pytest.mark.parametrize("size", [1, 3, 8, 12, 100])
def test_gradients_are_those_of_one_pass(size: int) -> None:
    """A transformer of timm's, without batch norm; chunks that divide the batch and that do not."""
    torch.manual_seed(0)
    model = ProjectedEncoder(VIT, image_size=32)
    views = [torch.randn(12, 3, 32, 32) for _ in range(3)]
    loss(model(views)).backward()
    expected = gradients(model)
    model.zero_grad()
    chunks = ChunkedForward(model, views, size)
    z = chunks.embed()
    assert all(torch.equal(a.grad_fn or a, a) for a in z)  # leaves: the loss's gradients end here
    loss(z).backward()
    chunks.backward()
    assert (gradients(model) - expected).abs().max() < 1e-5
    assert expected.abs().max() > 1e-2


METHODS = typing.get_args(typing.get_type_hints(TrainConfig)["method"])


@pytest.mark.parametrize("method", METHODS)
def test_gradients_of_every_method_are_those_of_one_pass(method: str, plain: TrainConfig) -> None:
    """The encoder's, and those of predictors and prototypes, which see the whole batch."""
    config = replace(plain, method=method, queue=12, batch=12, prototypes=10)
    torch.manual_seed(0)
    model = ProjectedEncoder(config, image_size=8)
    objective = make_objective(config, model)
    views = [torch.randn(12, 3, 8, 8) for _ in range(3)]
    found = []
    for chunk in (12, 5):
        model.zero_grad()
        objective.zero_grad()
        targets = in_chunks(objective.targets, views[:2], chunk)
        chunks = ChunkedForward(model, views, chunk)
        z = chunks.embed() if chunk < 12 else model(views)
        torch.manual_seed(1)
        beside = Beside(targets, labels=torch.arange(12) % 4)
        sum(loss_terms(objective, z[:2], z[2:], "term", beside).values()).backward()
        if chunk < 12:
            chunks.backward()
        found.append([gradients(model), gradients(objective)])
    for whole, chunked in zip(*found, strict=True):
        assert (chunked - whole).abs().max() < 1e-5 * max(1, float(whole.abs().max()))
    assert found[0][0].abs().max() > 1e-3


def test_the_second_pass_drops_what_the_first_one_dropped() -> None:
    """Else the gradient would belong to other embeddings than the loss."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 32), nn.Dropout(0.5), nn.Linear(32, 4))
    seen = []
    network.register_forward_hook(lambda _, __, output: seen.append(output.detach()))

    class OneView(nn.Module):
        def forward(self, views: list[torch.Tensor]) -> list[torch.Tensor]:
            return [network(views[0])]

    chunks = ChunkedForward(OneView(), [torch.randn(8, 6)], 4)
    chunks.embed()[0].square().sum().backward()
    chunks.backward()
    assert torch.equal(torch.cat(seen[:2]), torch.cat(seen[2:]))
    assert not torch.equal(seen[0], seen[1])


def test_a_chunked_run_is_the_whole_one(
    digit_set: ShardSet, tmp_path: Path, plain: TrainConfig
) -> None:
    states = []
    for chunk in (0, 3):
        out = tmp_path / str(chunk)
        train(replace(plain, chunk=chunk), digit_set.folder, out, cache=tmp_path)
        states.append(load_checkpoint(out / "checkpoints")[0])
    for name in states[0]:
        torch.testing.assert_close(states[1][name], states[0][name], atol=1e-5, rtol=1e-4)


def test_accumulated_batches_give_the_mean_of_their_gradients(
    digit_set: ShardSet, tmp_path: Path, plain: TrainConfig
) -> None:
    """Two batches of half of the set each, by hand, and the step that the loop makes of them."""
    config = replace(plain, batch=20, accumulate=2, momentum=0.0, weight_decay=0.0)
    train(config, digit_set.folder, tmp_path, cache=tmp_path)
    torch.manual_seed(config.seed)
    model = ProjectedEncoder(config, image_size=8)
    batches = TupleBatches(digit_set, 20, config.seed, positives=1)
    for step in range(2):
        (loss(model(make_views(batches[step], config, torch.device("cpu")))) / 2).backward()
    found, about = load_checkpoint(tmp_path / "checkpoints")
    assert about["step"] == 2
    for name, parameter in model.named_parameters():
        expected = parameter.detach() - learning_rate(config, 0) * parameter.grad
        torch.testing.assert_close(found[f"encoder.{name}"], expected)
        assert not torch.equal(expected, parameter)
