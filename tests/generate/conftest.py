"""A tiny diffusion model and a folder of real digits, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from diffusers import DDPMPipeline, DDPMScheduler
from PIL import Image
from sklearn.datasets import load_digits

from benchmarks.common import tiny_unet


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained 8x8 diffusers pipeline folder, written by diffusers itself."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    DDPMPipeline(unet=tiny_unet(), scheduler=DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def digit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 digits as PNG files, CLASS/NNN.png."""
    root = tmp_path_factory.mktemp("digits")
    digits = load_digits()
    for index in range(60):
        folder = root / str(digits.target[index])
        folder.mkdir(exist_ok=True)
        pixels = (digits.images[index] * 255 / 16).round().astype("uint8")
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")
    return root
