"""Recipes against the reference's table, and schedules at the moments it states."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from clsp.recipes import load_recipe
from clsp.train.config import TrainConfig, learning_rate, positive_weight

RECIPES = Path(__file__).parents[2] / "train" / "recipes"
METHODS = ("simclr", "simclr-aug", "clsp-simclr", "moco", "moco-aug", "clsp-moco")
NORMALISATION = {
    "": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "-cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "-stl10": ((0.4914, 0.4823, 0.4466), (0.247, 0.243, 0.261)),
}


def recipe(name: str) -> TrainConfig:
    values = load_recipe(name, RECIPES)
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return TrainConfig(**{"lambda_" if k == "lambda" else k: v for k, v in values.items()})


@pytest.mark.parametrize("data", NORMALISATION)
@pytest.mark.parametrize("name", METHODS)
def test_a_recipe_is_the_references(name: str, data: str) -> None:
    config, moco = recipe(name + data), "moco" in name
    assert (config.mean, config.std) == NORMALISATION[data]
    assert config.stem == ("stl" if data == "-stl10" else "cifar")
    assert (config.arch, config.hidden, config.dim) == ("resnet18", 4096, 256)
    assert (config.epochs, config.batch) == (1000, 512 if moco else 1024)
    assert (config.lr, config.lr_warmup) == (0.3 if moco else 0.5, 10)
    assert (config.momentum, config.weight_decay, config.temperature) == (0.9, 1e-4, 0.2)
    assert config.jitter == ((0.4, 0.4, 0.2, 0.1) if moco else (0.4, 0.4, 0.4, 0.1))
    assert (config.jitter_p, config.grey_p, config.flip_p) == (0.8, 0.2, 0.5)
    assert (config.crop_min, config.solarize_p) == (0.08, 0.2 if moco else 0.0)
    assert (config.method, config.lambda_warmup) == ("moco" if moco else "simclr", 0)
    kinds = {"clsp": "synthetic", "aug": "real"}
    part = next((part for part in kinds if part in name), None)
    assert config.positive == kinds.get(part, "none")
    if part:
        weights = {"": 0.5, "-cifar100": 0.2, "-stl10": 0.5} if moco else {}
        assert config.lambda_ == weights.get(data, 1.0)
    if moco:
        assert (config.queue, config.ema, config.ema_end) == (32768, 0.99, 0.999)


def test_the_learning_rate_is_the_references() -> None:
    config = TrainConfig(lr=0.5, epochs=1000)
    rates = [learning_rate(config, epoch) for epoch in range(1000)]
    assert rates[0] == pytest.approx(1e-3)
    assert rates[9] == pytest.approx(0.5) == max(rates)
    assert rates[5] == pytest.approx(1e-3 + (0.5 - 1e-3) * 5 / 9)
    assert rates[9 + 991 // 2] == pytest.approx(0.25, abs=1e-3)
    assert 0 < rates[999] < 1e-5
    assert all(a > b for a, b in pairwise(rates[9:]))


def test_the_schedule_says_how_often_the_rate_changes() -> None:
    by_epoch, by_step = (TrainConfig(epochs=20, schedule=name) for name in ("epoch", "step"))
    for epoch in (0, 4, 9, 15):
        assert learning_rate(by_epoch, epoch + 0.9) == learning_rate(by_epoch, epoch)
        assert learning_rate(by_step, epoch) == learning_rate(by_epoch, epoch)
        between = sorted(learning_rate(by_step, epoch + part) for part in (0, 0.5, 1))
        assert between[1] == learning_rate(by_step, epoch + 0.5)
        assert between[0] < between[1] < between[2]


@pytest.mark.parametrize("warmup", [0, 1])
def test_without_a_warm_up_training_starts_at_the_full_rate(warmup: int) -> None:
    assert learning_rate(TrainConfig(lr=0.5, lr_warmup=warmup), 0) == 0.5


def test_lambda_warms_up_linearly() -> None:
    config = TrainConfig(lambda_=0.8, lambda_warmup=4)
    weights = [positive_weight(config, epoch) for epoch in (0, 1, 2.5, 4, 9)]
    assert weights == pytest.approx([0, 0.2, 0.5, 0.8, 0.8])
    assert positive_weight(TrainConfig(lambda_=0.8), 0) == 0.8


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"batch": 1}, "needs at least 2"),
        ({"epochs": 0}, "epochs is 0"),
        ({"lambda_": -1.0}, r"lambda is -1\.0"),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"grey_p": 1.5}, r"grey_p is 1\.5"),
        ({"crop_min": 0.0}, r"crop_min is 0\.0"),
        ({"jitter": (0.4,)}, "jitter has 1 values, expected 4"),
        ({"method": "moco", "queue": 100, "batch": 64}, "not a multiple of batch 64"),
    ],
)
def test_a_config_out_of_range_is_refused(setting: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**setting)
