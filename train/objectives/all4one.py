"""All4One: NNCLR, a contrast of whole neighbourhoods, and one of features.

Estepa et al., 2023, "All4One: Symbiotic Neighbour Contrastive Learning via Self-Attention and
Redundancy Reduction", ICCV, arXiv:2303.09417.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .mocov3 import in_batch
from .nnclr import nearest
from .objective import Beside, Objective, Queue, Teacher, Views, unit


def sinusoids(length: int, dim: int) -> Tensor:
    """Return (length, dim) sines and cosines of a place, of wavelengths 2 pi to 20,000 pi."""
    rate = torch.exp(torch.arange(0, dim, 2) * (-math.log(10_000) / dim))
    angle = torch.arange(length)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)[:, :dim]


def redundancy(z1: Tensor, z2: Tensor, key1: Tensor, key2: Tensor) -> Tensor:
    """Return how far features correlate with others, and not with themselves, across views.

    z1, z2: projections; key1, key2: the teacher's, which take no gradient; (B, D) each. The mean of
    two root mean squares: of 1 - c on the diagonal of the matrix c of cosines between features, and
    of c off it.
    """
    columns = [nn.functional.normalize(x, dim=0) for x in (z1, z2, key1, key2)]
    c = torch.stack([columns[2].T @ columns[1], columns[3].T @ columns[0]])  # (2, D, D)
    diagonal = torch.eye(c.shape[1], dtype=torch.bool, device=c.device)
    itself, others = 1 - c[:, diagonal], c[:, ~diagonal]
    return (itself.square().mean().sqrt() + others.square().mean().sqrt()) / 2


class All4One(Objective):
    """The objective: half of each of three losses, the features' times 10 as its authors have it.

    A teacher's projections fill the support set and find neighbours there. The nearest one is
    NNCLR's target. A transformer makes a centroid of an anchor's neighbours, and another one of the
    other view's prediction followed by all but the last of that view's neighbours; these two find
    each other in the batch. A positive as neighbour comes before those that are found.

    predictors: two of them, (B, D) -> (B, D); neighbours: how many; sharp: the temperature of the
    centroids' loss.
    """

    places = ("term", "neighbour")
    place: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        predictors: tuple[nn.Module, nn.Module],
        dim: int,
        queue: int,
        temperature: float,
        decays: tuple[float, float],
        neighbours: int = 5,
        sharp: float = 0.1,
    ) -> None:
        super().__init__()
        self.teacher, self.support = Teacher(encoder, decays), Queue(queue, dim)
        self.predictor, self.second_predictor = predictors
        heads = math.gcd(8, dim)
        layer = nn.TransformerEncoderLayer(dim, heads, 2 * dim, dropout=0.1, batch_first=True)
        self.centroid = nn.TransformerEncoder(layer, num_layers=3, enable_nested_tensor=False)
        self.register_buffer("place", sinusoids(neighbours, dim), persistent=False)
        self.temperature, self.sharp = temperature, sharp

    def targets(self, views: Views) -> list[Tensor]:
        return [unit(target) for target in self.teacher(views)]

    def loss(self, z: Views, beside: Beside) -> Tensor:
        first, second = z[:2]
        found = [self.neighbours(key, beside) for key in beside.targets]  # (B, 5, D) each
        answers = [unit(self.predictor(view)) for view in (first, second)]
        shifted = [
            torch.cat([self.second_predictor(view)[:, None], near[:, :-1]], dim=1)
            for view, near in zip((first, second), found, strict=True)
        ]
        total = 5 * redundancy(first, second, *beside.targets)
        for one, other in ((0, 1), (1, 0)):
            nearest_one = found[one][:, 0]
            total = total + in_batch(nearest_one, answers[other], self.temperature) / 4
            centroids = self.centre(found[one]), self.centre(shifted[other])
            total = total + in_batch(*centroids, self.sharp) / 4
        return total

    def neighbours(self, key: Tensor, beside: Beside) -> Tensor:
        """Return (B, neighbours, D) of unit length: positives if there are any, then the nearest
        of the support set.
        """
        found = nearest(key, self.support.keys, len(self.place))
        given = [unit(neighbour)[:, None] for neighbour in beside.neighbours]
        return torch.cat([*given, found], dim=1)[:, : len(self.place)]

    def centre(self, near: Tensor) -> Tensor:
        """Return the centroid (B, D), of unit length, of a sequence of vectors (B, n, D)."""
        return unit(self.centroid(near + self.place)[:, 0])

    def after_step(self, encoder: nn.Module, beside: Beside, done: float) -> None:
        self.support.push(beside.targets[0])
        self.teacher.follow(encoder, done)
