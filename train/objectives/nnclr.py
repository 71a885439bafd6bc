"""NNCLR: a view's nearest neighbour among earlier projections stands for the view.

Dwibedi et al., 2021, arXiv:2104.14548.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .mocov3 import in_batch
from .objective import Beside, Objective, Queue, Views, unit


def nearest(z: Tensor, support: Tensor, count: int = 1) -> Tensor:
    """Return the rows of `support` (Q, D) nearest to each row of z (B, D): (B, count, D).

    All are of unit length; the nearest comes first. Q is at least count.
    """
    return support[(z @ support.T).topk(count, dim=1).indices]


class NNCLR(Objective):
    """The objective. A positive may be the neighbour, of both views, in the support set's place."""

    places = ("term", "neighbour")

    def __init__(self, predictor: nn.Module, dim: int, queue: int, temperature: float) -> None:
        super().__init__()
        self.support, self.predictor = Queue(queue, dim), predictor
        self.temperature = temperature
        self.register_buffer("pending", torch.empty(0), persistent=False)

    def loss(self, z: Views, beside: Beside) -> Tensor:
        self.pending = unit(z[0].detach())
        answers = [unit(self.predictor(view)) for view in z[:2]]
        if beside.neighbours:
            pairs = [(unit(n), answer) for n in beside.neighbours for answer in answers]
        else:
            found = [nearest(unit(view.detach()), self.support.keys)[:, 0] for view in z[:2]]
            pairs = [(found[0], answers[1]), (found[1], answers[0])]
        return torch.stack([in_batch(n, a, self.temperature) for n, a in pairs]).mean()

    def after_step(self, encoder: nn.Module, beside: Beside, done: float) -> None:
        self.support.push(self.pending)

    def chance(self, batch: int) -> float:
        return math.log(batch)
