"""Batches of anchors: what a record keeps of them, and what happens when a device is at its end."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clsp.generate.config import GenerateConfig
from clsp.generate.diffusion import open_model
from clsp.generate.records import BatchSampler, make_records
from clsp.shards.images import load_pixels, open_images

CONFIG = GenerateConfig(positives=3, steps=3, batch=4, site="mid_block")
KEYS = ("a", "b", "c", "d")
CPU = torch.device("cpu")


def sampler(model: Path, config: GenerateConfig = CONFIG) -> BatchSampler:
    dtype = getattr(torch, config.dtype)
    opened = open_model(str(model), dtype=dtype, channels_last=config.channels_last)
    return BatchSampler(config, opened, CPU, "the model")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return load_pixels(open_images("digits:test"), range(4))


def test_w_is_drawn_for_each_positive_and_kept(tiny_model: Path) -> None:
    source = open_images("digits:test")
    drawn = sampler(tiny_model, replace(CONFIG, w=(0.05, 0.3)))
    records = list(make_records(drawn, source, range(6)))
    shares = np.array([record.meta["w"] for record in records])
    assert shares.shape == (6, 3)
    assert shares.min() >= 0.05
    assert shares.max() <= 0.3
    assert len(np.unique(shares)) == 18
    # By the key: the same in a batch of another size, and for more positives.
    wider = sampler(tiny_model, replace(CONFIG, w=(0.05, 0.3), batch=5, positives=4))
    again = list(make_records(wider, source, range(6)))
    np.testing.assert_array_equal([record.meta["w"][:3] for record in again], shares)
    fixed = next(make_records(sampler(tiny_model), source, range(1)))
    assert fixed.meta["w"] == 0.1


def test_a_range_of_one_value_is_that_value(tiny_model: Path, pixels: np.ndarray) -> None:
    found, _ = sampler(tiny_model, replace(CONFIG, w=(0.2, 0.2))).sample(pixels, KEYS, None)
    expected, _ = sampler(tiny_model, replace(CONFIG, w=0.2)).sample(pixels, KEYS, None)
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("most", [3, 2, 1])
def test_a_batch_too_large_for_the_memory_is_halved(
    tiny_model: Path, pixels: np.ndarray, most: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A model that takes `most` rows stands for the device whose memory ends there."""
    whole, _ = sampler(tiny_model).sample(pixels, KEYS, None)
    cut = limited(sampler(tiny_model), most)
    found, _ = cut.sample(pixels, KEYS, None)
    # Only sums in another order, and so a last bit, may differ.
    assert np.abs(found.astype(int) - whole).max() <= 1
    rows = 2 if most > 1 else 1
    assert cut.layout() == {"rows": str(rows)}
    assert f"out of memory on cpu: going on with {rows} rows" in caplog.text


def limited(sampler: BatchSampler, most: int) -> BatchSampler:
    run = sampler.model.run

    def run_few(x: torch.Tensor, *more: Any) -> torch.Tensor:
        if len(x) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return run(x, *more)

    sampler.model = replace(sampler.model, run=run_few)
    return sampler


def test_what_does_not_fit_in_one_row_is_an_error(tiny_model: Path, pixels: np.ndarray) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        limited(sampler(tiny_model), 0).sample(pixels, KEYS, None)


def test_nan_names_anchor_step_and_model(tiny_model: Path, pixels: np.ndarray) -> None:
    broken = sampler(tiny_model)
    plain = broken.model.run

    def run(x: torch.Tensor, t: torch.Tensor, labels: Any) -> torch.Tensor:
        output = plain(x, t, labels)
        if t[0] < 500:
            output[2] = math.nan
        return output

    broken.model = replace(broken.model, run=run)
    message = "model the model: positive 0 of anchor c is not finite after step 3 of 3"
    with pytest.raises(ValueError, match=message):
        broken.sample(pixels, KEYS, None)


def test_bfloat16_and_channels_last_stay_near(tiny_model: Path, pixels: np.ndarray) -> None:
    exact, _ = sampler(tiny_model).sample(pixels, KEYS, None)
    fast = replace(CONFIG, dtype="bfloat16", channels_last=True)
    found, _ = sampler(tiny_model, fast).sample(pixels, KEYS, None)
    assert np.abs(found.astype(int) - exact).mean() < 4  # levels of 255
    assert (found != exact).any()
