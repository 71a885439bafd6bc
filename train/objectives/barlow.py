"""Barlow Twins: the views' features correlate each with itself and with no other.

Zbontar et al., 2021, arXiv:2103.03230.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .objective import Beside, Objective, Views


def standardise(z: Tensor) -> Tensor:
    """Return z (B, D) with mean 0 and deviation 1 over the batch."""
    return (z - z.mean(dim=0)) / (z.std(dim=0, unbiased=False) + 1e-5)


def barlow(z1: Tensor, z2: Tensor, weight: float = 0.0051) -> Tensor:
    """Return the squared distance of the cross-correlation from identity.

    z1, z2: (B, D). weight: of what is not on the diagonal.
    """
    correlation = standardise(z1).T @ standardise(z2) / len(z1)  # (D, D)
    diagonal = torch.eye(len(correlation), dtype=torch.bool, device=z1.device)
    distance = (correlation - diagonal.to(z1.dtype)).square()
    return torch.where(diagonal, distance, weight * distance).sum()


class BarlowTwins(Objective):
    """The objective; a positive as a view makes one more pair with the first view.

    scale: of the loss, which is a sum over features and large.
    """

    places = ("term", "view")

    def __init__(self, scale: float = 0.1) -> None:
        super().__init__()
        self.scale = scale

    def loss(self, z: Views, beside: Beside) -> Tensor:
        return self.scale * torch.stack([barlow(z[0], other) for other in z[1:]]).mean()
