"""Open a diffusion model: a diffusers folder, a hub id, or a reference checkpoint."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel

from ..shards.manifest import file_sha256
from .convert import timesteps_of, unet_from_reference

_WEIGHTS = "diffusion_pytorch_model.safetensors"


class ModelError(ValueError):
    """A diffusion model that cannot be used; the message says what was looked for and where."""


@dataclass(frozen=True)
class DiffusionModel:
    """An unconditional denoiser of RGB images, ready to sample.

    unet: called as `unet(x, t).sample`; scheduler_config: the noise levels it was trained on;
    sha256: over its weights and both configurations; image_size: pixels a side.
    """

    unet: UNet2DModel
    scheduler_config: dict[str, Any]
    sha256: str
    image_size: int


def open_model(
    spec: str, device: str = "cpu", dtype: torch.dtype = torch.float32, image_size: int = 32
) -> DiffusionModel:
    """Open the model that `spec` names, for sampling, on `device`.

    spec: a diffusers pipeline folder, a hub id (OWNER/NAME), or a reference checkpoint FILE.pt;
    image_size: pixels a side for a checkpoint, which does not say it.
    Nothing is unpickled but tensors. Raises ModelError for anything else.
    """
    path = Path(spec)
    if path.is_file():
        model = _open_checkpoint(path, image_size)
    elif path.is_dir():
        model = _open_folder(path)
    elif spec.count("/") == 1 and not spec.startswith((".", "/")):
        model = _open_folder(_fetch(spec))
    else:
        raise ModelError(f"model {spec}: there is no such file or folder, and it is no hub id")
    channels = (model.unet.config.in_channels, model.unet.config.out_channels)
    if channels != (3, 3):
        raise ModelError(
            f"model {spec}: it maps {channels[0]} channels to {channels[1]}, expected 3 and 3 (RGB)"
        )
    if model.unet.class_embedding is not None:
        raise ModelError(f"model {spec}: it wants class labels; an unconditional one is expected")
    model.unet.to(device).eval().requires_grad_(False)
    if dtype != torch.float32:  # diffusers warns about any cast, even to what it is already
        model.unet.to(dtype=dtype)
    return model


def _open_folder(folder: Path) -> DiffusionModel:
    try:
        pipeline = json.loads((folder / "model_index.json").read_text())
        parts = {name: folder / name for name in ("unet", "scheduler")}
        kind = pipeline["unet"][1]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ModelError(
            f"model {folder}: no diffusers pipeline with a unet is there ({error})"
        ) from error
    if kind != "UNet2DModel":
        raise ModelError(f"model {folder}: its denoiser is a {kind}, expected a UNet2DModel")
    files = [
        parts["unet"] / "config.json",
        parts["unet"] / _WEIGHTS,
        parts["scheduler"] / "scheduler_config.json",
    ]
    for file in files:
        if not file.is_file():
            raise ModelError(f"model {folder}: {file.relative_to(folder)} is missing")
    try:
        unet = UNet2DModel.from_pretrained(parts["unet"], use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"model {folder}: {error}") from error
    size = unet.config.sample_size
    if not isinstance(size, int):
        raise ModelError(f"model {folder}: its sample_size is {size!r}, expected pixels a side")
    # The library's version is no part of the model, and changes whenever it is saved again.
    configs = [_without_version(json.loads(file.read_text())) for file in (files[0], files[2])]
    text = json.dumps([file_sha256(files[1]), *configs], sort_keys=True)
    return DiffusionModel(unet, configs[1], hashlib.sha256(text.encode()).hexdigest(), size)


def _without_version(config: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in config.items() if k not in ("_diffusers_version", "_name_or_path")}


def _fetch(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = ["model_index.json", "scheduler/*.json", "unet/config.json", f"unet/{_WEIGHTS}"]
    flat = ["config.json", "scheduler_config.json", _WEIGHTS]
    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=[*wanted, *flat]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(f"model {hub_id}: no such folder, and not from the hub: {error}") from (
            error
        )
    return folder


def _open_checkpoint(path: Path, image_size: int) -> DiffusionModel:
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for what is no plain tensor file
        raise ModelError(f"model {path}: not a checkpoint of tensors only: {error}") from error
    if not isinstance(weights, dict) or not all(map(torch.is_tensor, weights.values())):
        raise ModelError(f"model {path}: expected a state dict of tensors")
    try:
        unet = unet_from_reference(weights, image_size)
    except (ValueError, RuntimeError, IndexError) as error:
        raise ModelError(f"model {path}: {error}") from error
    scheduler = DDPMScheduler(
        num_train_timesteps=timesteps_of(weights), beta_start=1e-4, beta_end=0.02
    )
    config = _without_version(dict(scheduler.config))
    return DiffusionModel(unet, config, file_sha256(path), image_size)
