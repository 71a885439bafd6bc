"""Several positives each: by class (SupCon), or all views of an anchor (StableRep).

Khosla et al., 2020, arXiv:2004.11362; Tian et al., 2023, arXiv:2306.00984.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .objective import Beside, Objective, Views, unit


def supcon(z: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy from "any row of my label, equally" to the softmax over all rows.

    z: (N, D) of unit length; labels: (N,), each at least twice. This is SupCon's L_out, and with an
    anchor's number as the label of its views the multi-positive loss of StableRep.
    """
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    similarity = (z @ z.T / temperature).masked_fill(itself, float("-inf"))
    log_share = similarity - similarity.logsumexp(dim=1, keepdim=True)
    positive = (labels[:, None] == labels) & ~itself
    return -(log_share.masked_fill(~positive, 0).sum(dim=1) / positive.sum(dim=1)).mean()


class SupCon(Objective):
    """All views of all images of a class are positives. Needs labels."""

    places = ("term", "view")

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def labels(self, z: Views, beside: Beside) -> Tensor:
        if beside.labels is None:
            raise ValueError("supcon needs labels, and the batch has none")
        return beside.labels

    def loss(self, z: Views, beside: Beside) -> Tensor:
        labels = self.labels(z, beside).repeat(len(z))
        return supcon(torch.cat([unit(view) for view in z]), labels, self.temperature)

    def chance(self, batch: int) -> float:
        return math.log(2 * batch - 1)


class StableRep(SupCon):
    """All views of an anchor are positives."""

    def labels(self, z: Views, beside: Beside) -> Tensor:
        return torch.arange(len(z[0]), device=z[0].device)
