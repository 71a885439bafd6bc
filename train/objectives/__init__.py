"""One method, one file. An objective knows no rank, no device and no configuration file."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ..config import TrainConfig
from .moco import MoCo
from .objective import Beside, Objective, Views, unit
from .positive import loss_terms
from .simclr import SimCLR

__all__ = ["Beside", "Objective", "Views", "loss_terms", "make_objective", "unit"]

_MAKE: dict[str, Callable[[TrainConfig, nn.Module], Objective]] = {
    "simclr": lambda c, encoder: SimCLR(c.temperature),
    "moco": lambda c, encoder: MoCo(encoder, c.dim, c.queue, c.temperature, (c.ema, c.ema_end)),
}


def make_objective(config: TrainConfig, encoder: nn.Module) -> Objective:
    """Return the objective that `config.method` names.

    Raises ValueError when a positive cannot enter it as `config.positive_as` says.
    """
    objective = _MAKE[config.method](config, encoder)
    if config.positive != "none" and config.positive_as not in objective.places:
        raise ValueError(
            f"positive-as is {config.positive_as}, but in {config.method} a positive enters as "
            f"{' or '.join(objective.places)}"
        )
    return objective
