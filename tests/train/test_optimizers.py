"""Optimisers: who is decayed, and that each goes on from a checkpoint as if it had not stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from clsp.train.checkpoint import collect_state, load_checkpoint, restore_state, save_checkpoint
from clsp.train.config import TrainConfig
from clsp.train.encoder import ProjectedEncoder
from clsp.train.optimizers import build_optimizer

NAMES = ("sgd", "lars", "adamw")


def start(name: str, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    config = TrainConfig(arch="conv-tiny", hidden=16, dim=8, optimizer=name, decay_all=False)
    encoder = ProjectedEncoder(config)
    return encoder, build_optimizer(config, encoder)


def step(encoder: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    torch.manual_seed(number)
    optimizer.zero_grad()
    encoder([torch.randn(8, 3, 8, 8)])[0].std(dim=0).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("name", NAMES)
def test_it_goes_on_from_a_checkpoint_bit_for_bit(name: str, tmp_path: Path) -> None:
    encoder, optimizer = start(name, seed=0)
    for number in range(3):
        step(encoder, optimizer, number)
    save_checkpoint(tmp_path, 3, collect_state({"encoder": encoder}, optimizer), {})
    again, restored = start(name, seed=1)
    restore_state(load_checkpoint(tmp_path)[0], {"encoder": again}, restored)
    for number in range(3, 6):
        step(encoder, optimizer, number)
        step(again, restored, number)
    expected, found = encoder.state_dict(), again.state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", NAMES)
def test_decay_spares_biases_and_norms_on_request(name: str) -> None:
    """Without a gradient but with decay, exactly the weights with more than one axis shrink."""
    for decay_all in (True, False):
        config = TrainConfig(
            arch="conv-tiny",
            hidden=16,
            dim=8,
            optimizer=name,
            lr=0.1,
            lars_trust=1.0,
            weight_decay=0.5,
            decay_all=decay_all,
        )
        encoder = ProjectedEncoder(config)
        nn.init.ones_(encoder.projector[0].bias)
        before = {key: value.clone() for key, value in encoder.named_parameters()}
        optimizer = build_optimizer(config, encoder)
        for parameter in encoder.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        moved = {k for k, v in encoder.named_parameters() if not torch.equal(v, before[k])}
        assert "projector.0.weight" in moved
        assert ("projector.0.bias" in moved) == decay_all
        assert ("backbone.1.weight" in moved) == decay_all  # a batch norm's


def test_lars_scales_a_layers_rate_by_its_trust_ratio() -> None:
    """trust * |w| / (|g| + decay * |w|), from the paper, on the first step."""
    layer = nn.Linear(4, 3, bias=False)
    config = TrainConfig(
        optimizer="lars", lr=0.5, momentum=0.0, weight_decay=0.1, lars_trust=0.02, decay_all=False
    )
    optimizer = build_optimizer(config, layer)
    weight, gradient = layer.weight.detach().clone(), torch.randn(3, 4)
    layer.weight.grad = gradient.clone()
    optimizer.step()
    trust = 0.02 * weight.norm() / (gradient.norm() + 0.1 * weight.norm())
    torch.testing.assert_close(
        layer.weight.detach(), weight - 0.5 * trust * (gradient + 0.1 * weight)
    )
