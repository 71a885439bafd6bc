"""Open a diffusion model: a diffusers folder, a hub id, or a reference checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDPMScheduler

from ..shards.manifest import file_sha256
from .convert import timesteps_of, unet_from_reference
from .denoiser import DiffusionModel, ModelError
from .families import open_folder, unet_run

# The last of the reference's linear betas, without and with labels; its checkpoints do not say it.
_BETA_END = {False: 0.02, True: 0.028}
_PARTS = ("unet", "transformer", "vae", "vqvae", "text_encoder", "tokenizer", "scheduler")


def open_model(
    spec: str,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    image_size: int = 32,
    *,
    channels_last: bool = False,
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
        model = open_folder(path)
    elif spec.count("/") == 1 and not spec.startswith((".", "/")):
        model = open_folder(_fetch(spec))
    else:
        raise ModelError(f"model {spec}: there is no such file or folder, and it is no hub id")
    model.to(device, dtype, channels_last=channels_last)
    return model


def _fetch(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = [f"{part}/*" for part in _PARTS]
    flat = ["model_index.json", "config.json", "scheduler_config.json", "*model.safetensors"]
    # Other precisions and other formats of the same weights.
    unwanted = ["*.fp16.*", "*.non_ema.*", "*.bin", "*.msgpack", "*.onnx", "*.pt", "*.ckpt"]
    try:
        folder = Path(
            snapshot_download(hub_id, allow_patterns=[*wanted, *flat], ignore_patterns=unwanted)
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(f"model {hub_id}: no such folder, and not from the hub: {error}") from (
            error
        )
    return folder


def _open_checkpoint(path: Path, image_size: int) -> DiffusionModel:
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for what is no plain tensor file
        # Its own message advises to let the file run code.
        raise ModelError(
            f"model {path}: expected a diffusers folder or a torch.save'd file of tensors only, "
            f"and it cannot be read as one ({type(error).__name__})"
        ) from error
    if not isinstance(weights, dict) or not all(map(torch.is_tensor, weights.values())):
        raise ModelError(f"model {path}: expected a state dict of tensors")
    try:
        unet = unet_from_reference(weights, image_size)
    except (ValueError, RuntimeError, IndexError) as error:
        raise ModelError(f"model {path}: {error}") from error
    channels = (unet.config.in_channels, unet.config.out_channels)
    if channels != (3, 3):
        raise ModelError(
            f"model {path}: it maps {channels[0]} channels to {channels[1]}, expected 3 and 3 (RGB)"
        )
    rows = unet.config.num_class_embeds or 0
    scheduler = DDPMScheduler(
        num_train_timesteps=timesteps_of(weights), beta_start=1e-4, beta_end=_BETA_END[rows > 0]
    )
    return DiffusionModel(
        unet,
        unet_run(unet),
        dict(scheduler.config),
        file_sha256(path),
        image_size,
        (3, image_size, image_size),
        label_rows=rows,
    )
