"""SimCLR: each view finds its twin among all views of the batch.

Chen et al., 2020, arXiv:2002.05709.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .objective import Beside, Objective, Views, unit


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Return the normalised temperature-scaled cross-entropy of two views of a batch.

    z1, z2: (B, D) of unit length; row i of one belongs to row i of the other, and the other
    2B - 2 rows are its negatives. A collapsed encoder gives ln(2B - 1).
    """
    z = torch.cat([z1, z2])
    similarity = z @ z.T / temperature  # (2B, 2B)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    similarity = similarity.masked_fill(itself, float("-inf"))
    twins = torch.arange(len(z), device=z.device).roll(len(z1))
    return nn.functional.cross_entropy(similarity, twins)


class SimCLR(Objective):
    """The objective: NT-Xent between the two views; it keeps nothing beside the encoder."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def loss(self, z: Views, beside: Beside) -> Tensor:
        return nt_xent(unit(z[0]), unit(z[1]), self.temperature)

    def chance(self, batch: int) -> float:
        return math.log(2 * batch - 1)
