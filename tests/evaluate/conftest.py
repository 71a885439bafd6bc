"""Features of three classes that lie in three directions, and an encoder that saw no training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from clsp.evaluate.features import Features
from clsp.shards.images import load_pixels, open_images
from clsp.train.config import TrainConfig
from clsp.train.encoder import build_backbone, build_projector, export_encoder


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


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run's folder with an untrained encoder and three rows of metrics."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    config = TrainConfig(arch="conv-tiny", hidden=32, dim=8, mean=(0.3,) * 3, std=(0.4,) * 3)
    backbone = build_backbone("conv-tiny", "cifar")
    pixels = torch.from_numpy(load_pixels(open_images("digits:train"))).permute(0, 3, 1, 2)
    for _ in range(20):  # so that batch norm knows the digits
        backbone((pixels / 255 - 0.3) / 0.4)
    export_encoder(folder / "encoder", backbone, config, 8, build_projector(512, 32, 8))
    rows = [
        {"step": n, "epoch": n / 2, "contrastive": 3 / n, "embedding_std": 0.5, "lr": 0.1}
        for n in (1, 2, 3)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
