"""CACR: pull the farther positives, push the nearer negatives.

Zheng et al., 2021, "Contrastive Attraction and Contrastive Repulsion", arXiv:2105.03746.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .objective import Beside, Objective, Views, unit


def cacr(views: Tensor, attract: float = 1.0, repel: float = 2.0) -> Tensor:
    """Return mean attraction minus mean repulsion, in squared distances.

    views: (V, B, D) of unit length. A positive's share is softmax(attract * distance), a negative's
    softmax(-repel * distance).
    """
    count, batch, _ = views.shape
    z = views.flatten(0, 1)
    distance = 2 - 2 * z @ z.T  # (VB, VB)
    anchor = torch.arange(batch, device=z.device).repeat(count)
    same = anchor[:, None] == anchor
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    near = (attract * distance).masked_fill(~same | itself, float("-inf")).softmax(dim=1)
    far = (-repel * distance).masked_fill(same, float("-inf")).softmax(dim=1)
    return ((near - far) * distance).sum(dim=1).mean()


class CACR(Objective):
    """The objective over all views."""

    places = ("term", "view")

    def loss(self, z: Views, beside: Beside) -> Tensor:
        return cacr(torch.stack([unit(view) for view in z]))

    def chance(self, batch: int) -> float:
        return 0.0
