"""VICReg and VIbCReg: views agree, features vary, and features do not repeat each other.

Bardes et al., 2022, arXiv:2105.04906; Lee and Aptoula, 2021, arXiv:2109.00783.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .objective import Beside, Objective, Views


def variance_loss(z: Tensor) -> Tensor:
    """Return how far below 1 the deviations of z (B, D) over the batch are, in the mean."""
    return (1 - (z.var(dim=0) + 1e-4).sqrt()).relu().mean()


def covariance_loss(z: Tensor) -> Tensor:
    """Return the sum of squared covariances of different features of z (B, D), over D."""
    centred = z - z.mean(dim=0)
    covariance = centred.T @ centred / (len(z) - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / z.shape[1]


def correlation_loss(z: Tensor) -> Tensor:
    """Return the mean squared correlation of different features of z (B, D)."""
    centred = nn.functional.normalize(z - z.mean(dim=0), dim=0)
    correlation = centred.T @ centred
    others = z.shape[1] * (z.shape[1] - 1)
    return (correlation.square().sum() - correlation.diagonal().square().sum()) / others


class VICReg(Objective):
    """The objective; a positive as a view makes one more pair with the first view.

    weights: of invariance, variance and decorrelation; correlated: VIbCReg's decorrelation.
    """

    places = ("term", "view")

    def __init__(
        self,
        weights: tuple[float, float, float] = (25.0, 25.0, 1.0),
        correlated: bool = False,
    ) -> None:
        super().__init__()
        self.weights = weights
        self.decorrelation = correlation_loss if correlated else covariance_loss

    def pair(self, z1: Tensor, z2: Tensor) -> Tensor:
        invariance, variance, decorrelation = self.weights
        total = invariance * nn.functional.mse_loss(z1, z2)
        for z in (z1, z2):
            total = total + variance * variance_loss(z) + decorrelation * self.decorrelation(z)
        return total

    def loss(self, z: Views, beside: Beside) -> Tensor:
        return torch.stack([self.pair(z[0], other) for other in z[1:]]).mean()
