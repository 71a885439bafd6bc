"""Feature transformation: positives moved apart, negatives mixed with each other.

Zhu et al., 2021, "Improving Contrastive Learning by Visualizing Feature Transformation", ICCV,
arXiv:2108.02982. Amounts are drawn from Beta(2, 2) + 1 for positives, from Beta(1.6, 1.6) for
negatives.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .moco import MoCo
from .objective import Beside, Objective, Views, unit


def draw_beta(alpha: float, like: Tensor) -> Tensor:
    """Return (B, 1) shares from Beta(alpha, alpha), drawn on the CPU; like: (B, D)."""
    return torch.distributions.Beta(alpha, alpha).sample((len(like), 1)).to(like)


def draw_partners(like: Tensor) -> Tensor:
    """Return a permutation of the rows of `like` (B, D), drawn on the CPU."""
    return torch.randperm(len(like)).to(like.device)


def extrapolate(z1: Tensor, z2: Tensor, amount: Tensor) -> tuple[Tensor, Tensor]:
    """Return both moved away from each other, not scaled back; amount: (B, 1), at least 1."""
    return amount * z1 + (1 - amount) * z2, amount * z2 + (1 - amount) * z1


def mix(z: Tensor, share: Tensor, partner: Tensor) -> Tensor:
    """Return each row of z (B, D) mixed with its partner's, not scaled back.

    share: (B, 1), what stays of itself; partner: (B,) rows.
    """
    return share * z + (1 - share) * z[partner]


def moved_info_nce(
    query: Tensor, key: Tensor, negatives: Tensor, amount: Tensor, temperature: float
) -> Tensor:
    """Return InfoNCE whose positive pair is moved apart; the negatives meet the query itself.

    query, key: (B, D) of unit length; negatives: (Q, D); amount: see `extrapolate`.
    """
    positive = torch.mul(*extrapolate(query, key, amount)).sum(dim=1, keepdim=True) / temperature
    logits = torch.cat([positive, query @ negatives.T / temperature], dim=1)
    return (logits.logsumexp(dim=1) - positive[:, 0]).mean()


def moved_nt_xent(
    z1: Tensor, z2: Tensor, amount: Tensor, share: Tensor, partner: Tensor, temperature: float
) -> Tensor:
    """Return NT-Xent whose positive pairs are moved apart, and whose negatives are mixed.

    z1, z2: (B, D) of unit length; amount: (B, 1), of each pair; share: (2B, 1) and partner: (2B,),
    of the rows of both views. Mixtures that have a part of an anchor's own views are none of its
    negatives.
    """
    z, anchor = torch.cat([z1, z2]), torch.arange(len(z1), device=z1.device).repeat(2)
    mixed = z @ mix(z, share, partner).T / temperature  # (2B, 2B)
    own = (anchor[:, None] == anchor) | (anchor[:, None] == anchor[partner])
    positive = torch.mul(*extrapolate(z1, z2, amount)).sum(dim=1).repeat(2) / temperature
    logits = torch.cat([positive[:, None], mixed.masked_fill(own, float("-inf"))], dim=1)
    return (logits.logsumexp(dim=1) - positive).mean()


class TransformedSimCLR(Objective):
    """SimCLR on transformed features."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def loss(self, z: Views, beside: Beside) -> Tensor:
        first, second = unit(z[0]), unit(z[1])
        both = torch.cat([first, second])
        amount, share = draw_beta(2.0, first) + 1, draw_beta(1.6, both)
        return moved_nt_xent(first, second, amount, share, draw_partners(both), self.temperature)


class TransformedMoCo(MoCo):
    """MoCo v2 on transformed features; the queues keep the keys as they were."""

    def loss(self, z: Views, beside: Beside) -> Tensor:
        keys, queues = beside.targets, (self.first.keys, self.second.keys)
        total = z[0].new_zeros(())
        for query, key, queue in ((z[0], keys[1], queues[1]), (z[1], keys[0], queues[0])):
            amount = draw_beta(2.0, key) + 1
            negatives = mix(queue, draw_beta(1.6, queue), draw_partners(queue))
            total = total + moved_info_nce(unit(query), key, negatives, amount, self.temperature)
        return total / 2
