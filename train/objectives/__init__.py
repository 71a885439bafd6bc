"""One method, one file. An objective knows no rank, no device and no configuration file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from ..config import TrainConfig
from .moco import MoCo
from .simclr import SimCLR

Views = Sequence[Tensor]


class Objective(Protocol):
    """A contrastive method: a loss of embeddings, and what it keeps beside the encoder.

    It is a module too, so that its state is saved and moved with the encoder's.
    """

    def targets(self, views: Views) -> list[Tensor]:
        """Return what the embeddings are compared with, if a second encoder makes it: (b, D) each.

        views: this rank's two views of the anchors, (b, 3, S, S).
        """

    def loss(self, z: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """Return the loss of the global batch; z: both views' embeddings, (B, D)."""

    def after_step(self, encoder: nn.Module, targets: Sequence[Tensor], done: float) -> None:
        """Follow the optimiser's step; `done` is the share of training that is over."""

    def chance(self, batch: int) -> float:
        """Return the loss of an encoder that sends every image to the same place."""


def make_objective(config: TrainConfig, encoder: nn.Module) -> SimCLR | MoCo:
    """Return the objective that `config.method` names."""
    if config.method == "simclr":
        return SimCLR(config.temperature)
    return MoCo(encoder, config.dim, config.queue, config.temperature, (config.ema, config.ema_end))
