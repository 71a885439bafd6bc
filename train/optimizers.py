"""The optimiser that a config names, over an encoder's parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .config import TrainConfig


def build_optimizer(config: TrainConfig, module: nn.Module) -> torch.optim.Optimizer:
    """Return SGD, LARS or AdamW over the parameters of `module` that want a gradient.

    Without `decay_all`, biases and the weights of norms, which have one axis, are not decayed; LARS
    then leaves their rate alone too (You et al., 2017, arXiv:1708.03888). LARS is timm's. Raises
    ValueError where it is wanted and timm is not installed.
    """
    wanted = [parameter for parameter in module.parameters() if parameter.requires_grad]
    plain = [p for p in wanted if p.ndim < 2 and not config.decay_all]
    groups: list[dict[str, Any]] = [
        {
            "params": [p for p in wanted if p.ndim >= 2 or config.decay_all],
            "weight_decay": config.weight_decay,
        }
    ]
    if plain:
        groups.append({"params": plain, "weight_decay": 0.0})
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr)
    try:
        from timm.optim import Lars
    except ImportError as error:
        raise ValueError("LARS is timm's: pip install 'clsp[timm]'") from error
    optimizer: torch.optim.Optimizer = Lars(
        groups,
        lr=config.lr,
        momentum=config.momentum,
        trust_coeff=config.lars_trust,
        trust_clip=config.lars_clip,
    )
    return optimizer
