"""BYOL: a predictor finds the other view's projection by a slowly moving teacher.

Grill et al., 2020, arXiv:2006.07733.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .objective import Beside, Objective, Teacher, Views, unit


def cross_views(answers: Views, targets: Views, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return the mean of `loss(answer, target)` over the pairs that are not of one view, times 2.

    So two views give the sum of both directions, as the papers have it. The first two targets are
    of the first two answers' views, further ones of none of theirs.
    """
    pairs = [
        (a, t) for i, a in enumerate(answers) for j, t in enumerate(targets) if i != j or j > 1
    ]
    return 2 * torch.stack([loss(a, t) for a, t in pairs]).mean()


class BYOL(Objective):
    """The objective. A positive as a view is a third question to both targets, and no target; as a
    target it is one more answer to both views of the anchor, and no question.

    predictor: (B, D) -> (B, D).
    """

    places = ("term", "view", "target")

    def __init__(
        self, encoder: nn.Module, predictor: nn.Module, decays: tuple[float, float]
    ) -> None:
        super().__init__()
        self.teacher, self.predictor = Teacher(encoder, decays), predictor

    def targets(self, views: Views) -> list[Tensor]:
        return [unit(target) for target in self.teacher(views)]

    def loss(self, z: Views, beside: Beside) -> Tensor:
        answers = [unit(self.predictor(view)) for view in z]
        return cross_views(answers, beside.targets, self.distance)

    def distance(self, answer: Tensor, target: Tensor) -> Tensor:
        """Return the mean squared distance of two unit vectors; answer, target: (B, D)."""
        return (2 - 2 * (answer * target).sum(dim=1)).mean()

    def after_step(self, encoder: nn.Module, beside: Beside, done: float) -> None:
        self.teacher.follow(encoder, done)
