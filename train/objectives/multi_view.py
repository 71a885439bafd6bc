"""MV-InfoNCE and MV-DHEL: all pairs of an anchor's views in one term.

Koromilas et al., 2025, "A Principled Framework for Multi-View Contrastive Learning",
arXiv:2507.06979.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .objective import Beside, Objective, Views, unit


def _alignment(views: Tensor, temperature: float) -> Tensor:
    """The logsumexp, (B,), of the similarities of an anchor's pairs of views."""
    first, second = torch.triu_indices(len(views), len(views), 1, device=views.device)
    return ((views[first] * views[second]).sum(dim=2) / temperature).logsumexp(dim=0)


def mv_infonce(views: Tensor, temperature: float) -> Tensor:
    """Return -log of an anchor's own pairs' share in all pairs that have a view of it, averaged.

    views: (V, B, D) of unit length.
    """
    count, batch, _ = views.shape
    z = views.flatten(0, 1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    others = (z @ z.T / temperature).masked_fill(itself, float("-inf")).logsumexp(dim=1)
    every = others.view(count, batch).logsumexp(dim=0)
    return (every - math.log(2) - _alignment(views, temperature)).mean()  # each pair both ways


def mv_dhel(views: Tensor, temperature: float) -> Tensor:
    """Return alignment over all pairs of views against uniformity within each view, averaged.

    views: (V, B, D) of unit length. The paper's product over views is a sum of logsumexp: a product
    would overflow.
    """
    itself = torch.eye(views.shape[1], dtype=torch.bool, device=views.device)
    similarity = views @ views.transpose(1, 2) / temperature  # (V, B, B)
    uniformity = similarity.masked_fill(itself, float("-inf")).logsumexp(dim=2).sum(dim=0)
    return (uniformity - _alignment(views, temperature)).mean()


class MultiView(Objective):
    """One of the two over all views; decoupled: MV-DHEL."""

    places = ("term", "view")

    def __init__(self, temperature: float, decoupled: bool) -> None:
        super().__init__()
        self.temperature, self.function = temperature, mv_dhel if decoupled else mv_infonce

    def loss(self, z: Views, beside: Beside) -> Tensor:
        return self.function(torch.stack([unit(view) for view in z]), self.temperature)
