"""SwAV: each view predicts the other's soft cluster, and clusters are filled alike.

Caron et al., 2020, arXiv:2006.09882; without its queue, which serves batches smaller than the
number of prototypes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .byol import cross_views
from .objective import Beside, Objective, Views, unit


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float = 0.05, rounds: int = 3) -> Tensor:
    """Return codes (B, P) whose rows sum to 1 and whose columns are filled about alike.

    scores: (B, P) similarities with the prototypes.
    """
    log = scores / epsilon
    for _ in range(rounds):
        log = log - log.logsumexp(dim=0, keepdim=True)
        log = log - log.logsumexp(dim=1, keepdim=True)
    return log.exp()


def soft_cross_entropy(logits: Tensor, code: Tensor) -> Tensor:
    """Return the mean over rows of the cross-entropy; logits, code: (B, P)."""
    return -(code * logits.log_softmax(dim=1)).sum(dim=1).mean()


class SwAV(Objective):
    """The objective. Further views, such as a positive, predict both views' codes and give none."""

    places = ("term", "view")

    def __init__(self, dim: int, prototypes: int, temperature: float) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(unit(torch.randn(prototypes, dim)))
        self.temperature = temperature

    def loss(self, z: Views, beside: Beside) -> Tensor:
        scores = [unit(view) @ unit(self.prototypes).T for view in z]
        codes = [sinkhorn(score) for score in scores[:2]]
        answers = [score / self.temperature for score in scores]
        return cross_views(answers, codes, soft_cross_entropy) / 2
