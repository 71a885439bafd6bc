"""One sampling loop over any diffusers scheduler: no file, no rank, no configuration."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor, nn

from .bottleneck import denoise_with, encode_to_site
from .noise import Noise

# What of a model's own scheduler describes the model; the rest describes a way of sampling.
_MODEL_SETTINGS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
)


def make_scheduler(name: str, config: dict[str, Any]) -> Any:
    """Return a diffusers scheduler for the noise levels that a model was trained on.

    name: "ddim" is the reference setting: trailing timesteps, x_0 not clipped inside the loop,
    alpha_bar 1 behind the last step. "ddpm" is ancestral sampling. "dpm-sde" is the stochastic
    second-order DPM-Solver++, good in few steps (Lu et al., 2022, arXiv:2211.01095).
    config: the configuration of the scheduler that came with the model.
    """
    settings = {key: config[key] for key in _MODEL_SETTINGS if config.get(key) is not None}
    settings["timestep_spacing"] = "trailing"
    if name == "ddim":
        return DDIMScheduler(clip_sample=False, set_alpha_to_one=True, **settings)
    if name == "ddpm":
        return DDPMScheduler(clip_sample=True, variance_type="fixed_small", **settings)
    if name == "dpm-sde":
        return DPMSolverMultistepScheduler(
            algorithm_type="sde-dpmsolver++", solver_order=2, final_sigmas_type="zero", **settings
        )
    raise ValueError(f"scheduler {name!r} is none of ddim, ddpm, dpm-sde")


@torch.no_grad()
def sample_positives(
    model: nn.Module,
    scheduler: Any,
    anchors: Tensor,
    noise: Noise,
    *,
    positives: int,
    w: float,
    steps: int,
    eta: float = 0.0,
    site: str = "mid_block",
) -> Tensor:
    """Sample `positives` images for each anchor; returns (B, K, C, H, W), not clipped.

    model: a denoiser called as `model(x, t).sample`; anchors: (B, C, H, W) in [-1, 1].
    At each step the anchors, noised to that step's level, run once up to the site and serve all
    their positives. Each positive number is a forward pass of its own over the batch, with its
    own scheduler state: so it is bit for bit the same for any K.
    eta: used by DDIM only.
    Raises ValueError naming anchors (by position) and positive when a sample is not finite.

    Zeng et al., 2024, arXiv:2408.16965.
    """
    scheduler.set_timesteps(steps)
    schedulers = [copy.deepcopy(scheduler) for _ in range(positives)]
    dtype = next(model.parameters()).dtype
    samples = [noise.initial(j) * float(scheduler.init_noise_sigma) for j in range(positives)]
    for number, t in enumerate(scheduler.timesteps):
        t = t.to(anchors.device)
        feature = anchors  # stays unused at w = 1
        if w < 1:
            noised = scheduler.add_noise(anchors, noise.anchor(number), t.expand(len(anchors)))
            feature = encode_to_site(model, site, noised.to(dtype), t)
        for j, x in enumerate(samples):
            scaled = schedulers[j].scale_model_input(x, t)
            output = denoise_with(model, site, scaled.to(dtype), t, w, feature).float()
            arguments = _step_arguments(schedulers[j], noise, j, number, eta)
            samples[j] = schedulers[j].step(output, t, x, **arguments).prev_sample
    for j, x in enumerate(samples):
        broken = (~x.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        if broken:
            raise ValueError(f"positive {j} of the batch's anchors {broken} is not finite")
    return torch.stack(samples, dim=1)


def _step_arguments(
    scheduler: Any, noise: Noise, positive: int, number: int, eta: float
) -> dict[str, Any]:
    """Return how this scheduler's `step` is told its noise; the draws are the same either way."""
    accepted = inspect.signature(scheduler.step).parameters
    arguments: dict[str, Any] = {}
    if "eta" in accepted:
        arguments["eta"] = eta
        if eta == 0:
            return arguments
    if "variance_noise" in accepted:
        arguments["variance_noise"] = noise.step(positive, number)
    elif "generator" in accepted:
        arguments["generator"] = noise.generators(positive, number)
    return arguments
