"""DINO: the student's distribution over prototypes follows a centred, sharper teacher's.

Caron et al., 2021, arXiv:2104.14294.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .byol import cross_views
from .objective import Beside, Objective, Teacher, Views, unit
from .swav import soft_cross_entropy


class Prototypes(nn.Module):
    """Similarities (B, P) of projections (B, D) with prototypes, all of unit length."""

    def __init__(self, dim: int, prototypes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(unit(torch.randn(prototypes, dim)))

    def forward(self, z: Tensor) -> Tensor:
        return unit(z) @ unit(self.weight).T


class DINO(Objective):
    """The objective. A positive as a view is seen by the student only.

    temperature, sharp: the student's and the teacher's. The centre is the running mean of the
    teacher's outputs.
    """

    places = ("term", "view")
    centre: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        dim: int,
        prototypes: int,
        decays: tuple[float, float],
        temperature: float = 0.1,
        sharp: float = 0.04,
    ) -> None:
        super().__init__()
        self.prototypes = Prototypes(dim, prototypes)
        self.teacher, self.head = Teacher(encoder, decays), Teacher(self.prototypes, decays)
        self.temperature, self.sharp = temperature, sharp
        self.register_buffer("centre", torch.zeros(prototypes))

    def targets(self, views: Views) -> list[Tensor]:
        found: list[Tensor] = self.teacher(views)
        return found

    def loss(self, z: Views, beside: Beside) -> Tensor:
        shares = [((s - self.centre) / self.sharp).softmax(dim=1) for s in self.scores(beside)]
        answers = [self.prototypes(view) / self.temperature for view in z]
        return cross_views(answers, shares, soft_cross_entropy) / 2

    def scores(self, beside: Beside) -> list[Tensor]:
        scores: list[Tensor] = [self.head.copy(target) for target in beside.targets]
        return scores

    @torch.no_grad()
    def after_step(self, encoder: nn.Module, beside: Beside, done: float) -> None:
        self.centre.lerp_(torch.cat(self.scores(beside)).mean(dim=0), 0.1)
        self.teacher.follow(encoder, done)
        self.head.follow(self.prototypes, done)

    def chance(self, batch: int) -> float:
        return math.log(len(self.centre))
