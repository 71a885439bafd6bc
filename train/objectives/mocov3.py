"""MoCo v3: BYOL's predictor and teacher under a contrastive loss within the batch.

Chen et al., 2021, arXiv:2104.02057.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .byol import BYOL


def in_batch(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy of finding each query's key among all keys of the batch.

    query, key: (B, D) of unit length, row by row.
    """
    target = torch.arange(len(query), device=query.device)
    return nn.functional.cross_entropy(query @ key.T / temperature, target)


class MoCoV3(BYOL):
    """The objective: 2 * temperature * cross-entropy, in both directions."""

    def __init__(
        self,
        encoder: nn.Module,
        predictor: nn.Module,
        temperature: float,
        decays: tuple[float, float],
    ) -> None:
        super().__init__(encoder, predictor, decays)
        self.temperature = temperature

    def distance(self, answer: Tensor, target: Tensor) -> Tensor:
        return 2 * self.temperature * in_batch(answer, target, self.temperature)

    def chance(self, batch: int) -> float:
        return 4 * self.temperature * math.log(batch)
