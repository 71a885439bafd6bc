"""What sampling asks of a diffusion model, whatever family it is of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .bottleneck import Denoise, list_sites

# (x, t, labels) -> the network's output: x (B, C, H, W) float32, t (B,), labels (B,) or None.
Run = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class ModelError(ValueError):
    """A diffusion model that cannot be used; the message says what was looked for and where."""


@dataclass(frozen=True)
class DiffusionModel:
    """A denoiser of RGB images, ready to sample.

    network: the module in which the site lies; run: calls it.
    scheduler_config: the noise levels it was trained on, as diffusers' schedulers write them.
    sha256: over all weights and configurations that decide pixels.
    image_size: pixels a side; shape: (C, H, W) of what is denoised.
    site: the path of its middle block.
    label_rows: rows of its table of class labels; 0 when it takes none. The last row stands for no
    class where there is one more than classes.
    autoencoder: between images and latents; None when pixels are denoised.
    """

    network: nn.Module
    run: Run
    scheduler_config: dict[str, Any]
    sha256: str
    image_size: int
    shape: tuple[int, int, int]
    site: str = "mid_block"
    label_rows: int = 0
    autoencoder: Any = None

    def to(self, device: str, dtype: torch.dtype, *, channels_last: bool = False) -> None:
        """Move it to where and how it is to run. The autoencoder stays in float32."""
        for module in filter(None, (self.network, self.autoencoder)):
            module.to(device).eval().requires_grad_(False)
        if dtype != torch.float32:  # diffusers warns about any cast, even to what it is already
            self.network.to(dtype=dtype)
        if channels_last:
            self.network.to(memory_format=torch.channels_last)

    def denoiser(self, labels: Tensor | None = None, guidance: float = 0.0) -> Denoise:
        """Return the denoiser of a batch.

        labels: (B,) class of each row, for a model that takes them, else None.
        guidance: how far to go beyond the label's prediction, away from the null label's; 0 is the
        label's alone (Ho and Salimans, 2022, arXiv:2207.12598).
        """
        run = self.run
        if labels is None or not guidance:
            return lambda x, t: run(x, t.expand(len(x)), labels)
        both = torch.cat([labels, torch.full_like(labels, self.label_rows - 1)])

        def guided(x: Tensor, t: Tensor) -> Tensor:
            output = run(torch.cat([x, x]), t.expand(len(x)).repeat(2), both)
            of_label, of_none = output.chunk(2)
            return (1 + guidance) * of_label - guidance * of_none

        return guided

    @torch.no_grad()
    def sites(self) -> dict[str, tuple[int, ...]]:
        """Return the paths that can be the site, in the order in which they run, with shapes."""
        weight = next(self.network.parameters())
        labels = torch.zeros(1, dtype=torch.long, device=weight.device)
        denoise = self.denoiser(labels if self.label_rows else None)
        x = torch.zeros(1, *self.shape, device=weight.device)
        return list_sites(denoise, self.network, x, torch.tensor(1, device=weight.device))

    def check_labels(self, classes: int | None, guidance: float) -> None:
        """Raise ModelError when images of so many classes (None: no labels) do not suit it."""
        rows = self.label_rows
        if not rows:
            if guidance:
                raise ModelError(f"guidance is {guidance}, but the model takes no class labels")
            return
        if classes not in (rows - 1, rows):
            found = "have no labels" if classes is None else f"have {classes} classes"
            raise ModelError(
                f"the images {found}, the model takes labels of {rows - 1} classes (or {rows}, "
                "if none of them stands for no class)"
            )
        if guidance and classes == rows:
            raise ModelError(
                f"guidance is {guidance}, but the model has {rows} labels for {rows} classes, and "
                "so none that stands for no class"
            )

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [-1, 1] -> what is denoised, (B, *shape). Nothing is drawn."""
        if self.autoencoder is None:
            return images
        coded: Any = self.autoencoder.encode(images)
        # An AutoencoderKL gives a distribution, a VQModel latents.
        latents: Tensor = coded.latent_dist.mode() if "latent_dist" in coded else coded.latents
        scaled: Tensor = latents * self.autoencoder.config.scaling_factor
        return scaled

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, *shape) -> images (B, 3, S, S), not clipped."""
        if self.autoencoder is None:
            return latents
        images: Tensor = self.autoencoder.decode(
            latents / self.autoencoder.config.scaling_factor
        ).sample
        return images


def edm_schedule(config: dict[str, Any]) -> dict[str, Any]:
    """Return noise levels for any scheduler of the sigmas that an EDM model was trained for.

    config: of diffusers' EDM schedulers. The T levels are spaced as Karras et al. do, so even
    timesteps are their discretisation; such a model predicts x_0 (see `preconditioned`).

    Karras et al., 2022, arXiv:2206.00364, equation 5.
    """
    steps, rho = config["num_train_timesteps"], config.get("rho", 7.0)
    low, high = (config[name] ** (1 / rho) for name in ("sigma_min", "sigma_max"))
    sigmas = torch.linspace(low, high, steps, dtype=torch.float64) ** rho
    alpha_bar = 1 / (1 + sigmas**2)
    before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    betas = (1 - alpha_bar / before).tolist()
    return {"num_train_timesteps": steps, "trained_betas": betas, "prediction_type": "sample"}


def preconditioned(run: Run, config: dict[str, Any]) -> Run:
    """Return `run` with EDM's coefficients around it: it predicts x_0 from a unit-variance x_t.

    run: the network as trained, a function of (c_in x, c_noise).

    Karras et al., 2022, arXiv:2206.00364, table 1.
    """
    betas = torch.tensor(edm_schedule(config)["trained_betas"], dtype=torch.float32)
    alpha_bar = (1 - betas).cumprod(0)  # as the schedulers compute it
    sigmas = ((1 - alpha_bar) / alpha_bar).sqrt()
    deviation = config["sigma_data"]
    sign = -1 if config.get("prediction_type") == "v_prediction" else 1

    def predict(x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        sigma = sigmas.to(x.device)[t.long()]
        column = sigma.reshape(-1, 1, 1, 1)
        total = (column**2 + deviation**2).sqrt()
        noisy = x * (column**2 + 1).sqrt()
        output = run(noisy / total, sigma.log() / 4, labels)
        x_0: Tensor = (deviation / total) ** 2 * noisy + sign * column * deviation / total * output
        return x_0

    return predict
