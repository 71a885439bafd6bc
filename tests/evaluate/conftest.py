"""Features of three classes that lie in three directions, with some overlap."""

from __future__ import annotations

import pytest
import torch

from clsp.evaluate.features import Features


def make_features(count: int, seed: int, spread: float = 0.6) -> Features:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    centres = torch.eye(3, 8)
    plain, mirrored = (
        centres[labels] + spread * torch.randn(count, 8, generator=generator) for _ in range(2)
    )
    return Features(plain, mirrored, labels, ("a", "b", "c"))


@pytest.fixture
def train_features() -> Features:
    return make_features(300, seed=0)


@pytest.fixture
def test_features() -> Features:
    return make_features(150, seed=1)
