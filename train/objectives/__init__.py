"""One method, one file. An objective knows no rank, no device and no configuration file."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ..config import TrainConfig
from ..encoder import build_projector
from .all4one import All4One
from .barlow import BarlowTwins
from .byol import BYOL
from .cacr import CACR
from .dcl import DCL
from .dino import DINO
from .moco import MoCo
from .mocov3 import MoCoV3
from .multi_view import MultiView
from .nnclr import NNCLR
from .objective import Beside, Objective, Views, unit
from .positive import loss_terms
from .simclr import SimCLR
from .supcon import StableRep, SupCon
from .swav import SwAV
from .transform import TransformedMoCo, TransformedSimCLR
from .vicreg import VICReg

__all__ = ["Beside", "Objective", "Views", "loss_terms", "make_objective", "unit"]


def _predictor(c: TrainConfig) -> nn.Sequential:
    return build_projector(c.dim, c.predictor_hidden or c.hidden, c.dim, 2, c.predictor_bn)


def _moco(kind: type[MoCo], c: TrainConfig, encoder: nn.Module) -> MoCo:
    return kind(encoder, c.dim, c.queue, c.temperature, (c.ema, c.ema_end))


_MAKE: dict[str, Callable[[TrainConfig, nn.Module], Objective]] = {
    "simclr": lambda c, encoder: SimCLR(c.temperature),
    "moco": lambda c, encoder: _moco(MoCo, c, encoder),
    "mocov3": lambda c, encoder: MoCoV3(encoder, _predictor(c), c.temperature, (c.ema, c.ema_end)),
    "byol": lambda c, encoder: BYOL(encoder, _predictor(c), (c.ema, c.ema_end)),
    "nnclr": lambda c, encoder: NNCLR(_predictor(c), c.dim, c.queue, c.temperature),
    "all4one": lambda c, encoder: All4One(
        encoder,
        (_predictor(c), _predictor(c)),
        c.dim,
        c.queue,
        c.temperature,
        (c.ema, c.ema_end),
    ),
    "barlow": lambda c, encoder: BarlowTwins(),
    "vicreg": lambda c, encoder: VICReg(),
    "vibcreg": lambda c, encoder: VICReg((25.0, 25.0, 200.0), correlated=True),
    "swav": lambda c, encoder: SwAV(c.dim, c.prototypes, c.temperature),
    "dino": lambda c, encoder: DINO(encoder, c.dim, c.prototypes, (c.ema, c.ema_end)),
    "supcon": lambda c, encoder: SupCon(c.temperature),
    "stablerep": lambda c, encoder: StableRep(c.temperature),
    "mv-infonce": lambda c, encoder: MultiView(c.temperature, decoupled=False),
    "mv-dhel": lambda c, encoder: MultiView(c.temperature, decoupled=True),
    "cacr": lambda c, encoder: CACR(),
    "dcl": lambda c, encoder: DCL(c.temperature),
    "dclw": lambda c, encoder: DCL(c.temperature, sigma=0.5),
    "ft-simclr": lambda c, encoder: TransformedSimCLR(c.temperature),
    "ft-moco": lambda c, encoder: _moco(TransformedMoCo, c, encoder),
}


def make_objective(config: TrainConfig, encoder: nn.Module) -> Objective:
    """Return the objective that `config.method` names.

    Raises ValueError when a positive cannot enter it as `config.positive_as` says, and for local
    crops where it takes two views only.
    """
    objective = _MAKE[config.method](config, encoder)
    if config.positive != "none" and config.positive_as not in objective.places:
        raise ValueError(
            f"positive-as is {config.positive_as}, but in {config.method} a positive enters as "
            f"{' or '.join(objective.places)}"
        )
    if config.local_crops and "view" not in objective.places:
        raise ValueError(
            f"local_crops is {config.local_crops}, but {config.method} takes two views only"
        )
    return objective
