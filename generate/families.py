"""Diffusers pipeline folder -> DiffusionModel: one adapter a family, chosen by model_index.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from ..shards.manifest import file_sha256
from .denoiser import DiffusionModel, ModelError, Run, edm_schedule, preconditioned

_EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")


class _Folder:
    """A pipeline folder: its parts, what class each is of, and a hash over those that were used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.index: dict[str, Any] = json.loads((path / "model_index.json").read_text())
            self.pipeline = str(self.index["_class_name"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"model {path}: no diffusers pipeline is there, because its model_index.json "
                f"cannot be read ({error}); a pipeline of {supported()} is expected"
            ) from error
        self._used: dict[str, Any] = {}

    def part(self, name: str) -> Path:
        """A part's folder; in the oldest pipelines of one model, the pipeline's own."""
        return self.path / name if (self.path / name).is_dir() else self.path

    def config(self, name: str, file: str = "config.json") -> dict[str, Any]:
        path = self.part(name) / file
        try:
            values: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ModelError(f"model {self.path}: {name}/{file} cannot be read: {error}") from error
        # The library's version is no part of the model, and changes whenever it is saved again.
        values = {
            k: v for k, v in values.items() if k not in ("_diffusers_version", "_name_or_path")
        }
        self._used[name] = values
        return values

    def load(self, name: str, *classes: str) -> Any:
        """Load the model `name`, which must be one of diffusers' `classes`."""
        kind = (self.index.get(name) or [None, None])[1]
        if kind not in classes:
            raise ModelError(
                f"model {self.path}: its {name} is a {kind}, expected {' or '.join(classes)}"
            )
        config, weights = self.config(name), sorted(self.part(name).glob("*.safetensors"))
        if not weights:
            raise ModelError(f"model {self.path}: {name} has no weights in *.safetensors")
        self._used[name] = [config, [file_sha256(file) for file in weights]]
        try:
            return getattr(diffusers, kind).from_pretrained(self.part(name), use_safetensors=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"model {self.path}: {name}: {error}") from error

    def use(self, name: str) -> Path:
        """Hash all files of a part that others load, and return its folder."""
        files = sorted(path for path in self.part(name).rglob("*") if path.is_file())
        self._used[name] = {path.name: file_sha256(path) for path in files}
        return self.part(name)

    def sha256(self) -> str:
        text = json.dumps(self._used, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def open_folder(path: Path) -> DiffusionModel:
    """Open a diffusers pipeline folder. Raises ModelError for a family that has no adapter."""
    folder = _Folder(path)
    if folder.pipeline not in _FAMILIES:
        raise ModelError(
            f"model {path} is a {folder.pipeline}, which has no adapter; supported: {supported()}"
        )
    model = _FAMILIES[folder.pipeline](folder)
    channels = model.autoencoder.config.in_channels if model.autoencoder else model.shape[0]
    if channels != 3:
        raise ModelError(f"model {path}: its images have {channels} channels, expected 3 (RGB)")
    return model


def supported() -> str:
    """Return the pipelines that have an adapter, in words."""
    return ", ".join(_FAMILIES)


def unet_run(network: nn.Module) -> Run:
    """Return the plain call of a UNet2DModel, with or without class labels, from float32 to it."""
    dtype_of = next(network.parameters())
    table = isinstance(network.get_submodule("time_proj"), nn.Embedding)

    def run(x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        # Some schedulers give whole timesteps as floats, which are no rows of a table.
        output: Tensor = network(x.to(dtype_of.dtype), t.long() if table else t, labels).sample
        return output.float()

    return run


def _open_unet(folder: _Folder) -> DiffusionModel:
    """UNet2DModel on pixels, or on the latents of a VQModel or AutoencoderKL (`vqvae` or `vae`)."""
    network = folder.load("unet", "UNet2DModel")
    config = network.config
    if config.class_embed_type is not None:
        raise ModelError(
            f"model {folder.path}: its class embedding is of type {config.class_embed_type!r}, "
            "expected a table with a row a class"
        )
    scheduler = folder.config("scheduler", "scheduler_config.json")
    run = unet_run(network)
    if scheduler["_class_name"] in _EDM:
        run, scheduler = preconditioned(run, scheduler), edm_schedule(scheduler)
    coder = next((name for name in ("vqvae", "vae") if folder.index.get(name)), None)
    autoencoder = folder.load(coder, "VQModel", "AutoencoderKL") if coder else None
    rows = config.num_class_embeds or 0
    return _model(folder, network, run, scheduler, autoencoder, label_rows=rows)


def _open_text(folder: _Folder) -> DiffusionModel:
    """UNet2DConditionModel of the Stable Diffusion family, always with the empty prompt."""
    network = folder.load("unet", "UNet2DConditionModel")
    if network.config.addition_embed_type or network.config.class_embed_type:
        raise ModelError(f"model {folder.path}: its U-Net wants more than a prompt")
    prompt = _empty_prompt(folder)

    def run(x: Tensor, t: Tensor, _: Tensor | None) -> Tensor:
        states = prompt.to(x.device, network.dtype).expand(len(x), -1, -1)
        output: Tensor = network(x.to(network.dtype), t, states).sample
        return output.float()

    scheduler = folder.config("scheduler", "scheduler_config.json")
    return _model(folder, network, run, scheduler, folder.load("vae", "AutoencoderKL"))


@torch.no_grad()
def _empty_prompt(folder: _Folder) -> Tensor:
    """(1, tokens, F): what the text encoder makes of an empty prompt."""
    try:
        from transformers import CLIPTextModel, CLIPTokenizer
    except ImportError as error:
        raise ModelError(
            f"model {folder.path} has a text encoder, which needs the package transformers: "
            "pip install 'clsp[text]'"
        ) from error
    tokenizer = CLIPTokenizer.from_pretrained(folder.use("tokenizer"))
    encoder = CLIPTextModel.from_pretrained(folder.use("text_encoder"), use_safetensors=True)
    length = tokenizer.model_max_length
    tokens = tokenizer("", padding="max_length", max_length=length, return_tensors="pt")
    states: Tensor = encoder(tokens.input_ids)[0]
    return states


def _open_dit(folder: _Folder) -> DiffusionModel:
    """DiT with the null class; its site is the middle one of its blocks."""
    network = folder.load("transformer", "DiTTransformer2DModel", "Transformer2DModel")
    config, null = network.config, network.config.num_embeds_ada_norm

    def run(x: Tensor, t: Tensor, _: Tensor | None) -> Tensor:
        labels = torch.full((len(x),), null, device=x.device)
        output: Tensor = network(x.to(network.dtype), timestep=t, class_labels=labels).sample
        return output[:, : config.in_channels].float()  # the rest is a learned variance

    site = f"transformer_blocks.{config.num_layers // 2}"
    scheduler = folder.config("scheduler", "scheduler_config.json")
    autoencoder = folder.load("vae", "AutoencoderKL")
    return _model(folder, network, run, scheduler, autoencoder, site=site)


def _model(
    folder: _Folder,
    network: Any,
    run: Run,
    scheduler: dict[str, Any],
    autoencoder: Any,
    **more: Any,
) -> DiffusionModel:
    """Put a model together whose latents, if it has an autoencoder, are what that one makes."""
    side, channels = network.config.sample_size, network.config.in_channels
    if not isinstance(side, int):
        raise ModelError(
            f"model {folder.path}: its sample_size is {side!r}, expected pixels a side"
        )
    scale = 1
    if autoencoder is not None:
        scale = 2 ** (len(autoencoder.config.block_out_channels) - 1)
        latent = autoencoder.config.latent_channels
        if channels != latent:
            raise ModelError(
                f"model {folder.path}: its denoiser takes {channels} channels, its autoencoder "
                f"makes {latent}"
            )
    elif network.config.out_channels != channels:
        raise ModelError(
            f"model {folder.path}: no denoiser, since it maps {channels} channels to "
            f"{network.config.out_channels}"
        )
    shape = (channels, side, side)
    return DiffusionModel(
        network,
        run,
        scheduler,
        folder.sha256(),
        side * scale,
        shape,
        autoencoder=autoencoder,
        **more,
    )


_FAMILIES: dict[str, Callable[[_Folder], DiffusionModel]] = {
    "DDPMPipeline": _open_unet,
    "DDIMPipeline": _open_unet,
    "LDMPipeline": _open_unet,
    "StableDiffusionPipeline": _open_text,
    "DiTPipeline": _open_dit,
}
