"""What an objective is: a loss of a batch's projections, and what it keeps beside the encoder."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

Views = Sequence[Tensor]


def unit(x: Tensor) -> Tensor:
    """Return the rows of x (B, D) scaled to unit length."""
    return nn.functional.normalize(x, dim=1)


class Beside(NamedTuple):
    """What comes with the projections of a global batch; no gradient reaches it.

    targets: what `Objective.targets` gave, (B, D) each; neighbours: projections of positives that
    stand for the nearest neighbour, (B, D) each; labels: (B,) int64.
    """

    targets: Views = ()
    neighbours: Views = ()
    labels: Tensor | None = None


class Objective(nn.Module):
    """A method: a loss of projections, (B, D) a view and of any length, of the global batch.

    It knows no rank, no device and no configuration. Its parameters (a predictor, prototypes) are
    trained with the encoder's. They act on the rows of all ranks, so every rank has their whole
    gradient, and a batch norm among them sees the whole batch. What is random in `loss` is drawn
    alike on every rank.

    places: where a positive may enter: "term" beside the loss, which any method allows, as one more
    "view", as the "neighbour", or as one more "target".
    """

    places: tuple[str, ...] = ("term",)

    def targets(self, views: Views) -> list[Tensor]:
        """Return what a second encoder makes of a rank's two views of the anchors, and of the
        positives that are targets: (b, D) each.

        views: (b, 3, S, S) each.
        """
        return []

    def loss(self, z: Views, beside: Beside) -> Tensor:
        """Return the scalar loss; z: two views of the anchors, then any further ones."""
        raise NotImplementedError

    def after_step(self, encoder: nn.Module, beside: Beside, done: float) -> None:
        """Follow the optimiser's step; `done` is the share of training that is over."""

    def chance(self, batch: int) -> float | None:
        """Return the loss of an encoder that sends every image to the same place, if known."""
        return None


class Teacher(nn.Module):
    """A copy of a module that follows it slowly and takes no gradient.

    decays: the first and the last; between them half a cosine. It stays in training mode, as in the
    papers.
    """

    def __init__(self, student: nn.Module, decays: tuple[float, float]) -> None:
        super().__init__()
        self.copy = copy.deepcopy(student).requires_grad_(False)
        self.decays = decays

    @torch.no_grad()
    def forward(self, x: Views | Tensor) -> list[Tensor]:
        found: list[Tensor] = self.copy(x)
        return found

    @torch.no_grad()
    def follow(self, student: nn.Module, done: float) -> None:
        """Move the parameters towards the student's; buffers are each module's own."""
        decay = momentum(*self.decays, done)
        for slow, fast in zip(self.copy.parameters(), student.parameters(), strict=True):
            slow.lerp_(fast, 1 - decay)


def momentum(start: float, end: float, done: float) -> float:
    """Return a teacher's decay when the share `done` of training is over: a half cosine."""
    return end - (end - start) * (math.cos(math.pi * done) + 1) / 2


class Queue(nn.Module):
    """The last `size` projections, first in first out, beginning with random directions.

    `keys` is (Q, D) of unit length. The size must be a multiple of the batch.
    """

    keys: Tensor
    position: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", unit(torch.randn(size, dim)))
        self.register_buffer("position", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Put `keys` (B, D) in the place of the oldest ones."""
        start = int(self.position)
        if start + len(keys) > len(self.keys):
            raise ValueError(f"queue of {len(self.keys)} is no multiple of a batch of {len(keys)}")
        self.keys[start : start + len(keys)] = keys
        self.position.fill_((start + len(keys)) % len(self.keys))
