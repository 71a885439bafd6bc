"""Feature transformation: positives moved apart, negatives mixed with each other.

Zhu et al., 2021, "Improving Contrastive Learning by Visualizing Feature Transformation", ICCV,
arXiv:2108.02982.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .moco import MoCo
from .objective import Beside, Views, unit


def draw_beta(alpha: float, like: Tensor) -> Tensor:
    """Return (B, 1) shares from Beta(alpha, alpha), drawn on the CPU; like: (B, D)."""
    return torch.distributions.Beta(alpha, alpha).sample((len(like), 1)).to(like)


def extrapolate(z1: Tensor, z2: Tensor, amount: Tensor) -> tuple[Tensor, Tensor]:
    """Return both moved away from each other, not scaled back; amount: (B, 1), at least 1."""
    return amount * z1 + (1 - amount) * z2, amount * z2 + (1 - amount) * z1


class TransformedMoCo(MoCo):
    """MoCo v2 on transformed features; the queues keep the keys as they were."""

    def loss(self, z: Views, beside: Beside) -> Tensor:
        keys, queues = beside.targets, (self.first.keys, self.second.keys)
        total = z[0].new_zeros(())
        for query, key, queue in ((z[0], keys[1], queues[1]), (z[1], keys[0], queues[0])):
            moved = extrapolate(unit(query), key, draw_beta(2.0, key) + 1)
            share = draw_beta(1.6, queue)
            mixed = share * queue + (1 - share) * queue[torch.randperm(len(queue)).to(queue.device)]
            # The negatives meet the query itself, only the twin meets the one that was moved.
            total = total + _info_nce(moved, unit(query), mixed, self.temperature) / 2
        return total


def _info_nce(
    moved: tuple[Tensor, Tensor], query: Tensor, negatives: Tensor, temperature: float
) -> Tensor:
    positive = torch.mul(*moved).sum(dim=1, keepdim=True) / temperature
    logits = torch.cat([positive, query @ negatives.T / temperature], dim=1)
    return (logits.logsumexp(dim=1) - positive[:, 0]).mean()
