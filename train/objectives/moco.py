"""MoCo v2: each view finds its twin's key among the keys of earlier batches.

He et al., 2020, arXiv:1911.05722; Chen et al., 2020, arXiv:2003.04297. Symmetric, as in the CLSP
paper: both views are queries, and each of the two kinds of keys has a queue of its own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .objective import Beside, Objective, Queue, Teacher, Views, unit


def info_nce(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy of finding `key` among `queue`.

    query, key: (B, D) of unit length, row by row; queue: (Q, D), the negatives. No gradient
    should reach key and queue.
    """
    positive = (query * key).sum(dim=1, keepdim=True)  # (B, 1)
    logits = torch.cat([positive, query @ queue.T], dim=1) / temperature
    target = torch.zeros(len(query), dtype=torch.long, device=query.device)
    return nn.functional.cross_entropy(logits, target)


class MoCo(Objective):
    """The objective: a key encoder that follows the encoder slowly, and a queue for each view.

    encoder: what the key encoder starts as a copy of; dim: D; decays: the key encoder's first and
    last.
    """

    def __init__(
        self,
        encoder: nn.Module,
        dim: int,
        queue: int,
        temperature: float,
        decays: tuple[float, float],
    ) -> None:
        super().__init__()
        self.teacher = Teacher(encoder, decays)
        self.first, self.second = Queue(queue, dim), Queue(queue, dim)
        self.temperature = temperature

    def targets(self, views: Views) -> list[Tensor]:
        return [unit(key) for key in self.teacher(views)]

    def loss(self, z: Views, beside: Beside) -> Tensor:
        key1, key2 = beside.targets
        one = info_nce(unit(z[0]), key2, self.second.keys, self.temperature)
        two = info_nce(unit(z[1]), key1, self.first.keys, self.temperature)
        return (one + two) / 2

    def after_step(self, encoder: nn.Module, beside: Beside, done: float) -> None:
        # Only now: the backward pass still needed the queues as they were.
        self.first.push(beside.targets[0])
        self.second.push(beside.targets[1])
        self.teacher.follow(encoder, done)

    def chance(self, batch: int) -> float:
        return math.log(1 + len(self.first.keys))
