"""What decides the pixels of a generated set, and the weights of a fitted model."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import click

# Of `clsp generate` and `clsp features`.
image_size_option = click.option(
    "--image-size",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Pixels a side that a reference .pt file was trained for, which does not say it.",
)


def _help(text: str, default: Any) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class GenerateConfig:
    """How positives are sampled. The defaults are the reference setting.

    Zeng et al., 2024, arXiv:2408.16965.
    """

    positives: int = _help("Positives kept for each anchor (K).", 8)
    w: float | tuple[float, float] = _help(
        "The random sample's share of the bottleneck; 0 is all anchor. A:B is drawn per positive.",
        0.1,
    )
    scheduler: Literal["ddim", "ddpm", "dpm", "dpm-sde", "dpm-single", "unipc", "euler", "heun"] = (
        _help("Sampler.", "ddim")
    )
    steps: int = _help("Sampling steps.", 100)
    eta: float = _help("DDIM's noise: 0 is deterministic, 1 as much as DDPM.", 0.1)
    site: str = _help(
        "Path of the denoiser's module whose output is mixed; `list` prints those that can be.",
        "middle",
    )
    mix_timesteps: tuple[float, float] | None = _help(
        "Timesteps A:B at which it is mixed; elsewhere the sample runs alone.  [default: all]", None
    )
    guidance: float = _help(
        "Classifier-free guidance by the anchor's label, for a model that takes labels.", 0.0
    )
    seed: int = _help("Seed of all noise.", 0)
    batch: int = _help("Anchors a forward pass (in the plan: it can change a last bit).", 64)
    dtype: Literal["float32", "bfloat16"] = _help("Arithmetic of the denoiser.", "float32")
    channels_last: bool = _help("Let the denoiser keep its images channels last.", False)
    image_format: Literal["png", "webp", "jpeg"] = _help("Format of stored images.", "png")
    anchors: bool = _help("Store the anchors too, not only hashes that tell which they are.", True)
    shard_size: int = _help("Anchors a shard.", 1000)

    def __post_init__(self) -> None:
        if self.positives < 1:
            raise ValueError(f"positives is {self.positives}, expected at least 1 for each anchor")
        low, high = self.w_range
        if not 0 <= low <= high <= 1:
            raise ValueError(f"w is {self.w}, expected a share in [0, 1], or two in order")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta is {self.eta}, expected a value in [0, 1]")
        for name in ("steps", "batch", "shard_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.guidance < 0:
            raise ValueError(f"guidance is {self.guidance}, expected at least 0")
        if self.mix_timesteps and not 0 <= self.mix_timesteps[0] <= self.mix_timesteps[1]:
            raise ValueError(f"mix_timesteps is {self.mix_timesteps}, expected two in order")

    @property
    def w_range(self) -> tuple[float, float]:
        """The least and the largest share of the random sample."""
        return self.w if isinstance(self.w, tuple) else (self.w, self.w)


@dataclass(frozen=True)
class FitConfig:
    """What decides the diffusion model. The defaults are the reference's CIFAR setting."""

    images: str = field(metadata={"help": "Image source, e.g. digits or folder:PATH."})
    image_size: int = _help("Images are cropped and resized to this side, in pixels.", 32)
    channels: int = _help("Channels of the first level.", 128)
    channel_mult: tuple[int, ...] = _help("Each level's multiple of them.", (1, 2, 2, 2))
    attention: tuple[int, ...] = _help("Levels with self-attention, from 0.", (1,))
    mid_attention: bool = _help("Self-attention in the middle block.", True)
    blocks: int = _help("Residual blocks a level.", 2)
    groups: int = _help("Groups of each group norm.", 32)
    dropout: float = _help("Dropout in residual blocks.", 0.1)
    timesteps: int = _help("Length T of the noising chain.", 1000)
    beta_start: float = _help("First of the T linear betas.", 1e-4)
    beta_end: float = _help("Last of the T linear betas.", 0.02)
    steps: int = _help("Optimiser steps.", 800_000)
    batch: int = _help("Images a step, over all ranks.", 128)
    lr: float = _help("Adam's learning rate after the warm-up.", 2e-4)
    warmup: int = _help("Steps of linear warm-up.", 5000)
    lr_decay: bool = _help("Let the rate fall to 0 by half a cosine behind the warm-up.", False)
    min_snr: float = _help(
        "Largest signal-to-noise ratio that counts in the loss (Min-SNR weights); 0: no weights.",
        0.0,
    )
    ema: float = _help("Decay of the weights' moving average, which is what gets saved.", 0.9999)
    clip: float = _help("Largest gradient norm.", 1.0)
    flip: bool = _help("Mirror half of the images.", True)
    labels: bool = _help("Train with the images' class labels, for guidance.", False)
    label_dropout: float = _help("Share of images whose label is hidden.", 0.1)
    seed: int = _help("Seed of weights, order and noise.", 0)
    save_every: int = _help("Steps between checkpoints.", 2000)
    sample_every: int = _help("Steps between grids of samples.", 10_000)
    sample_steps: int = _help("Sampling steps of those.", 50)

    def __post_init__(self) -> None:
        levels = len(self.channel_mult)
        shrink = 2 ** (levels - 1)
        if self.image_size < 1 or self.image_size % shrink:
            raise ValueError(
                f"image_size {self.image_size} must be a multiple of {shrink}, because "
                f"{levels} levels halve it {levels - 1} times"
            )
        if self.min_snr < 0:
            raise ValueError(f"min_snr is {self.min_snr}, expected 0 or more")
        if any(level not in range(levels) for level in self.attention):
            raise ValueError(f"attention levels {self.attention} are not all in 0..{levels - 1}")
        narrow = [self.channels * m for m in self.channel_mult if self.channels * m % self.groups]
        if narrow:
            raise ValueError(f"groups {self.groups} does not divide a level's {narrow[0]} channels")
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(f"label_dropout is {self.label_dropout}, expected a share in [0, 1]")
        for name in ("steps", "batch", "save_every", "sample_every", "sample_steps", "timesteps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")


def fit_learning_rate(config: FitConfig, step: int) -> float:
    """Return the rate of step `step`, counted from 0."""
    if step < config.warmup or not config.lr_decay:
        return config.lr * min(1.0, (step + 1) / max(1, config.warmup))
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))
