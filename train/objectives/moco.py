"""MoCo v2: each view finds its twin's key among the keys of earlier batches.

He et al., 2020, arXiv:1911.05722; Chen et al., 2020, arXiv:2003.04297. Symmetric, as in the CLSP
paper: both views are queries, and each of the two kinds of keys has a queue of its own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def info_nce(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy of finding `key` among `queue`.

    query, key: (B, D) of unit length, row by row; queue: (Q, D), the negatives. No gradient
    should reach key and queue.
    """
    positive = (query * key).sum(dim=1, keepdim=True)  # (B, 1)
    logits = torch.cat([positive, query @ queue.T], dim=1) / temperature
    target = torch.zeros(len(query), dtype=torch.long, device=query.device)
    return nn.functional.cross_entropy(logits, target)


class Queue(nn.Module):
    """The last `size` keys, first in first out, beginning with random directions.

    `keys` is (Q, D) of unit length. The size must be a multiple of the batch.
    """

    keys: Tensor
    position: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", nn.functional.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("position", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Put `keys` (B, D) in the place of the oldest ones."""
        start = int(self.position)
        if start + len(keys) > len(self.keys):
            raise ValueError(f"queue of {len(self.keys)} is no multiple of a batch of {len(keys)}")
        self.keys[start : start + len(keys)] = keys
        self.position.fill_((start + len(keys)) % len(self.keys))


def momentum(start: float, end: float, done: float) -> float:
    """Return the key encoder's decay when the share `done` of training is over: a half cosine."""
    return end - (end - start) * (math.cos(math.pi * done) + 1) / 2


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move `average`'s parameters towards `model`'s; buffers are each module's own."""
    for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)


class MoCo(nn.Module):
    """The objective: a key encoder that follows the encoder slowly, and a queue for each view.

    encoder: what `key_encoder` starts as a copy of; dim: D; decays: the key encoder's first and
    last. The key encoder stays in training mode, as in the paper.
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
        self.key_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.queues = nn.ModuleList([Queue(queue, dim), Queue(queue, dim)])
        self.temperature, self.decays = temperature, decays

    @torch.no_grad()
    def targets(self, views: Sequence[Tensor]) -> list[Tensor]:
        keys: list[Tensor] = self.key_encoder(views)
        return keys

    def loss(self, z: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        first, second = (queue.keys for queue in self.queues)
        one = info_nce(z[0], targets[1], second, self.temperature)  # type: ignore[arg-type]
        two = info_nce(z[1], targets[0], first, self.temperature)  # type: ignore[arg-type]
        return (one + two) / 2

    def after_step(self, encoder: nn.Module, targets: Sequence[Tensor], done: float) -> None:
        # Only now: the backward pass still needed the queues as they were.
        for queue, keys in zip(self.queues, targets, strict=True):
            queue.push(keys)  # type: ignore[operator]
        update_average(self.key_encoder, encoder, momentum(*self.decays, done))

    def chance(self, batch: int) -> float:
        return math.log(1 + len(self.queues[0].keys))  # type: ignore[arg-type]
