"""One sampling loop over any diffusers scheduler: no file, no rank, no configuration."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from .bottleneck import Denoise, Site, denoise_with, encode_to_site
from .noise import Noise

Drawn = TypeVar("Drawn")

# What of a model's own scheduler describes the model (the rest describes a way of sampling), with
# the defaults of the DDPM paper, which not all of diffusers' schedulers share.
_MODEL_SETTINGS = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": None,
}
_SCHEDULERS: dict[str, tuple[type, dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": True}),
    "ddpm": (DDPMScheduler, {"variance_type": "fixed_small"}),
    "dpm": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "dpm-sde": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "dpm-single": (DPMSolverSinglestepScheduler, {"lower_order_final": True}),
    "unipc": (UniPCMultistepScheduler, {}),
    "euler": (EulerDiscreteScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
}


class NotFinite(ValueError):
    """A sample that is NaN or infinite.

    rows: positions in the batch; positive: its number; step: the first sampling step behind which
    it was so.
    """

    def __init__(self, rows: list[int], positive: int, step: int) -> None:
        super().__init__(f"positive {positive} of rows {rows} is not finite after step {step}")
        self.rows, self.positive, self.step = rows, positive, step


def make_scheduler(name: str, config: dict[str, Any], *, clip: bool = True) -> Any:
    """Return a diffusers scheduler for the noise levels that a model was trained on.

    name: "ddim" is the reference setting: trailing timesteps, x_0 not clipped inside the loop,
    alpha_bar 1 behind the last step. "ddpm" is ancestral sampling. "dpm" and "dpm-single" are the
    second-order DPM-Solver++, multistep and single-step (Lu et al., 2022, arXiv:2211.01095), and
    "dpm-sde" its stochastic form, good in few steps. "unipc": Zhao et al., 2023,
    arXiv:2302.04867. "euler" and "heun": Karras et al., 2022, arXiv:2206.00364; a step of "heun"
    costs two model calls.
    config: the configuration of the scheduler that came with the model.
    clip: keep the predicted x_0 of every step in [-1, 1], where the scheduler can ("ddpm", "dpm",
    "dpm-single", "dpm-sde", "unipc"). It suits pixels, not latents: without it the colours of a
    model from a short training drift into black and white.
    Raises ValueError for an unknown name, and for noise levels which the scheduler cannot have.
    """
    if name not in _SCHEDULERS:
        raise ValueError(f"scheduler {name!r} is none of {', '.join(_SCHEDULERS)}")
    kind, settings = _SCHEDULERS[name]
    of_model = {k: config.get(k, v) for k, v in _MODEL_SETTINGS.items()}
    of_model = {k: v for k, v in of_model.items() if v is not None}
    accepted = inspect.signature(kind).parameters
    if of_model.pop("rescale_betas_zero_snr", False):
        if "rescale_betas_zero_snr" not in accepted:
            raise ValueError(f"scheduler {name} cannot start from pure noise, as this model does")
        of_model["rescale_betas_zero_snr"] = True
    if "timestep_spacing" in accepted:
        of_model["timestep_spacing"] = "trailing"
    if name == "ddpm":
        of_model["clip_sample"] = clip
    elif clip and "thresholding" in accepted and name != "ddim":
        of_model |= {"thresholding": True, "sample_max_value": 1.0}  # a threshold of 1: a clip
    return kind(**settings, **of_model)


@torch.no_grad()
def sample_positives(
    denoise: Denoise,
    site: Site,
    scheduler: Any,
    anchors: Tensor,
    noise: Noise,
    *,
    positives: int,
    w: float | Tensor,
    steps: int,
    eta: float = 0.0,
    mix_timesteps: tuple[float, float] | None = None,
) -> Tensor:
    """Sample `positives` images for each anchor; returns (B, K, C, H, W), not clipped.

    anchors: (B, C, H, W), pixels in [-1, 1] or latents.
    At each step the anchors, noised to that step's level, run once up to the site and serve all
    their positives. Each positive number is a forward pass of its own over the batch, with its
    own scheduler state: so it is bit for bit the same for any K.
    w: the random sample's share, for all or (B, K) for each positive. With w = 1 this is plain
    sampling.
    eta: used by DDIM only.
    mix_timesteps: bottlenecks are mixed at timesteps t with first <= t <= last; None is everywhere.
    Raises NotFinite when a sample is not finite.

    Zeng et al., 2024, arXiv:2408.16965.
    """
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps
    schedulers = [copy.deepcopy(scheduler) for _ in range(positives)]
    samples = [noise.initial(j) * float(scheduler.init_noise_sigma) for j in range(positives)]
    first, last = mix_timesteps or (0, float("inf"))
    plain = not isinstance(w, Tensor) and w == 1
    mixed = [first <= float(t) <= last and not plain for t in timesteps]

    def draw(number: int) -> tuple[Tensor | None, list[dict[str, Any]]]:
        steps_of = [_step_arguments(scheduler, noise, j, number, eta) for j in range(positives)]
        return noise.anchor(number) if mixed[number] else None, steps_of

    # Each row's first bad step, read at the end: asking a GPU at every step would stall it.
    broken = torch.full((positives, len(anchors)), -1, device=anchors.device)
    for number, (of_anchors, arguments) in enumerate(_one_ahead(draw, len(timesteps))):
        t = timesteps[number].to(anchors.device)
        feature = anchors  # stays unused where nothing is mixed
        if of_anchors is not None:
            noised = scheduler.add_noise(anchors, of_anchors, t.expand(len(anchors)))
            feature = encode_to_site(denoise, site, schedulers[0].scale_model_input(noised, t), t)
        for j, x in enumerate(samples):
            scaled = schedulers[j].scale_model_input(x, t)
            if of_anchors is not None:
                share = w[:, j] if isinstance(w, Tensor) else w
                output = denoise_with(denoise, site, scaled, t, share, feature)
            else:
                output = denoise(scaled, t)
            samples[j] = schedulers[j].step(output, t, x, **arguments[j]).prev_sample
            bad = ~samples[j].isfinite().flatten(1).all(1)
            broken[j] = torch.where(bad & (broken[j] < 0), number, broken[j])
    for j, row in enumerate(broken.tolist()):
        rows = [index for index, step in enumerate(row) if step >= 0]
        if rows:
            raise NotFinite(rows, j, row[rows[0]])
    return torch.stack(samples, dim=1)


def _one_ahead(draw: Callable[[int], Drawn], count: int) -> Iterator[Drawn]:
    """Yield draw(0), draw(1), ..., each computed by a thread while the one before is used."""
    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(draw, 0)
        for number in range(1, count + 1):
            drawn = upcoming.result()
            if number < count:
                upcoming = pool.submit(draw, number)
            yield drawn


def _step_arguments(
    scheduler: Any, noise: Noise, positive: int, number: int, eta: float
) -> dict[str, Any]:
    """Return how this scheduler's `step` is told its noise; the draws are the same either way."""
    if isinstance(scheduler, DDIMScheduler):
        drawn = {"variance_noise": noise.step(positive, number)} if eta else {}
        return {"eta": eta, **drawn}
    if isinstance(scheduler, DDPMScheduler):
        return {"generator": noise.generators(positive, number)}
    if scheduler.config.get("algorithm_type") == "sde-dpmsolver++":
        return {"variance_noise": noise.step(positive, number)}
    return {}
