"""The state of a run of `clsp fit`: one safetensors file, replaced atomically."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel
from safetensors import safe_open
from safetensors.torch import save

from ..shards.files import write_atomic
from .config import FitConfig

# What a rerun may change: more steps than before are a continuation, anything else another model.
_FREE = ("images", "steps", "save_every", "sample_every", "sample_steps")


def save_state(
    path: Path,
    config: FitConfig,
    step: int,
    unet: UNet2DModel,
    average: EMAModel,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write weights, their moving average and Adam's moments after `step` steps."""
    tensors: dict[str, torch.Tensor] = {}
    for (name, weight), shadow in zip(unet.named_parameters(), average.shadow_params, strict=True):
        tensors[f"unet.{name}"], tensors[f"ema.{name}"] = weight.detach(), shadow
        for moment, value in optimizer.state[weight].items():
            tensors[f"{moment}.{name}"] = torch.as_tensor(value)
    tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
    about = {"step": str(step), "config": json.dumps(asdict(config), sort_keys=True)}
    write_atomic(path, save(tensors, metadata=about))


@torch.no_grad()
def load_state(
    path: Path,
    config: FitConfig,
    unet: UNet2DModel,
    average: EMAModel,
    optimizer: torch.optim.Optimizer,
) -> int:
    """Restore what `save_state` wrote; return the steps done, 0 when there is no file.

    Raises ValueError when the file belongs to another config.
    """
    if not path.exists():
        return 0
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    before, now = json.loads(about["config"]), json.loads(json.dumps(asdict(config)))
    for name in now:
        if name not in _FREE and before.get(name) != now[name]:
            raise ValueError(
                f"{path} was made with {name} = {before.get(name)}, not {now[name]}; "
                "give another --out or the same settings"
            )
    for (name, weight), shadow in zip(unet.named_parameters(), average.shadow_params, strict=True):
        weight.copy_(tensors[f"unet.{name}"])
        shadow.copy_(tensors[f"ema.{name}"])
        optimizer.state[weight] = {
            moment: tensors[f"{moment}.{name}"].to("cpu" if moment == "step" else weight.device)
            for moment in ("step", "exp_avg", "exp_avg_sq")
        }
    average.optimization_step = int(about["step"])
    return int(about["step"])
