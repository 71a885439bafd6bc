"""DCL and DCLW: SimCLR without the twin among the negatives.

Yeh et al., 2022, "Decoupled Contrastive Learning", arXiv:2110.06848.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .objective import Beside, Objective, Views, unit


def dcl(z1: Tensor, z2: Tensor, temperature: float, sigma: float | None = None) -> Tensor:
    """Return the decoupled contrastive loss of two views of a batch.

    z1, z2: (B, D) of unit length. sigma: weights each twin by 2 - exp(s / sigma) over its mean,
    less the more alike it already is (DCLW); None weights all alike.
    """
    z, twins = torch.cat([z1, z2]), torch.cat([z2, z1])
    positive = (z * twins).sum(dim=1)  # (2B,)
    anchor = torch.arange(len(z1), device=z.device).repeat(2)
    same = anchor[:, None] == anchor  # itself and its twin
    negatives = (z @ z.T / temperature).masked_fill(same, float("-inf")).logsumexp(dim=1)
    weight = 1.0 if sigma is None else 2 - len(z) * torch.softmax(positive / sigma, dim=0)
    return (negatives - weight * positive / temperature).mean()


class DCL(Objective):
    """The objective between the two views; sigma: see `dcl`."""

    def __init__(self, temperature: float, sigma: float | None = None) -> None:
        super().__init__()
        self.temperature, self.sigma = temperature, sigma

    def loss(self, z: Views, beside: Beside) -> Tensor:
        return dcl(unit(z[0]), unit(z[1]), self.temperature, self.sigma)
