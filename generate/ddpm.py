"""The model that `clsp fit` trains: its U-Net, its noise levels, its samples, its folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import Tensor

from ..shards.files import temporary_name, write_atomic
from ..shards.preview import enlarge
from .config import FitConfig
from .sampler import make_scheduler

_GRID = 8  # samples a side


def build_unet(config: FitConfig, classes: int = 0) -> UNet2DModel:
    """Return the U-Net of `config` with fresh weights; it maps (B, 3, S, S) and (B,) to eps.

    classes: of the labels that it takes too; the label after the last class stands for none.
    """
    levels = range(len(config.channel_mult))
    down = ["AttnDownBlock2D" if i in config.attention else "DownBlock2D" for i in levels]
    up = ["AttnUpBlock2D" if i in config.attention else "UpBlock2D" for i in reversed(levels)]
    return UNet2DModel(
        sample_size=config.image_size,
        block_out_channels=tuple(config.channels * m for m in config.channel_mult),
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        add_attention=config.mid_attention,
        layers_per_block=config.blocks,
        norm_num_groups=config.groups,
        dropout=config.dropout,
        num_class_embeds=classes + 1 if classes else None,
        attention_head_dim=None,  # one head, as in the DDPM paper
    )


def noise_schedule(config: FitConfig) -> DDPMScheduler:
    """Return the noise levels of `config`, as diffusers writes them beside the model."""
    return DDPMScheduler(
        num_train_timesteps=config.timesteps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
    )


def denoising_loss(eps: Tensor, noise: Tensor, alpha_bar: Tensor, min_snr: float = 0.0) -> Tensor:
    """Return the mean squared error of predicted noise, each image weighted by its noise level.

    eps, noise: (B, C, H, W); alpha_bar: (B,), of each image's timestep.
    min_snr: gamma; an image's weight is min(SNR, gamma) / SNR with SNR = alpha_bar / (1 -
    alpha_bar), so that the many almost clean images do not rule the gradient. 0 weights all alike,
    as in the DDPM paper.

    Hang et al., 2023, arXiv:2303.09556.
    """
    error = (eps.float() - noise).square().flatten(1).mean(dim=1)  # (B,)
    if min_snr:
        snr = alpha_bar / (1 - alpha_bar)
        error = error * snr.clamp(max=min_snr) / snr
    return error.mean()


@torch.no_grad()
def sample_grid(unet: UNet2DModel, config: FitConfig, device: torch.device) -> np.ndarray:
    """Return an 8x8 grid of samples, (8 H, 8 H, 3) uint8, always from the same noise.

    H: the image's side, or a multiple of it that people can see.
    A model with labels draws a class a row. Ancestral sampling with x_0 clipped: it shows a model's
    state long before it is good enough for samplers that do not clip.
    """
    scheduler = make_scheduler("ddpm", dict(noise_schedule(config).config))
    scheduler.set_timesteps(config.sample_steps)
    side = config.image_size
    generator = torch.Generator().manual_seed(config.seed)
    x = torch.randn((_GRID**2, 3, side, side), generator=generator).to(device)
    labels = None
    if unet.config.num_class_embeds:
        labels = torch.arange(len(x), device=device) // _GRID % (unet.config.num_class_embeds - 1)
    for t in scheduler.timesteps:
        eps = unet(x, t.to(device), labels).sample
        x = scheduler.step(eps, t, x, generator=generator).prev_sample
    levels = ((x.clamp(-1, 1) + 1) * 127.5).round().byte().cpu()
    tiles = enlarge(levels.permute(0, 2, 3, 1).numpy())
    side = tiles.shape[1]
    rows = tiles.reshape(_GRID, _GRID, side, side, 3).swapaxes(1, 2)
    return rows.reshape(_GRID * side, _GRID * side, 3)


def save_pipeline(unet: UNet2DModel, config: FitConfig, out: Path) -> None:
    """Write the diffusers pipeline into `out`; `model_index.json` comes last and says "whole"."""
    staging = temporary_name(out / "pipeline")
    try:
        DDPMPipeline(unet=unet, scheduler=noise_schedule(config)).save_pretrained(staging)
        (out / "model_index.json").unlink(missing_ok=True)
        for part in ("unet", "scheduler"):
            shutil.rmtree(out / part, ignore_errors=True)
            (staging / part).rename(out / part)
        write_atomic(out / "model_index.json", (staging / "model_index.json").read_bytes())
    finally:
        shutil.rmtree(staging, ignore_errors=True)
