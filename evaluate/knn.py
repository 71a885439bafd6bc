"""Weighted k-nearest-neighbour accuracy, with k chosen on a validation split."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .features import Features

KS = (1, 5, 10, 20, 50, 100, 200)
TEMPERATURE = 0.07
_VALIDATION = 0.1  # of the training images of each class
_CHUNK = 1024  # test images at a time


def knn_predict(train: Features, test: Features, k: int) -> Tensor:
    """Return each test image's class, (N,): neighbours vote with exp(cosine / 0.07).

    Wu et al., 2018, arXiv:1805.01978.
    """
    bank = normalize(train.plain, dim=1)
    found = []
    for queries in normalize(test.plain, dim=1).split(_CHUNK):
        similarity, neighbours = (queries @ bank.T).topk(k, dim=1)
        votes = torch.zeros(len(queries), len(train.classes))
        # Relative to the nearest one: the same ranking, and nothing overflows.
        weights = ((similarity - similarity[:, :1]) / TEMPERATURE).exp()
        votes.scatter_add_(1, train.labels[neighbours], weights)
        found.append(votes.argmax(dim=1))
    return torch.cat(found)


def split_validation(train: Features, seed: int = 0) -> tuple[Features, Features]:
    """Split features into a larger part and a validation part of a tenth of each class."""
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(train.labels), dtype=torch.bool)
    for label in train.labels.unique():
        rows = (train.labels == label).nonzero()[:, 0]
        chosen = torch.randperm(len(rows), generator=generator)
        held_out[rows[chosen[: max(1, round(_VALIDATION * len(rows)))]]] = True
    return train.select(~held_out), train.select(held_out)


def knn(train: Features, test: Features, seed: int = 0) -> dict[str, float]:
    """Return "knn", the accuracy in percent on `test`, and "knn_k", the k that was chosen.

    k is the best on a validation split of `train`, the smallest one of equals; then all of `train`
    votes on `test`. Raises ValueError for a class with a single image.
    """
    fewest = train.labels.bincount(minlength=len(train.classes)).min().item()
    if fewest < 2:
        raise ValueError(f"a class has {fewest} training images, kNN needs at least 2 to choose k")
    fit, validation = split_validation(train, seed)
    candidates = [k for k in KS if k <= len(fit.labels)]
    scores = [_accuracy(knn_predict(fit, validation, k), validation.labels) for k in candidates]
    k = candidates[scores.index(max(scores))]
    return {"knn": _accuracy(knn_predict(train, test, k), test.labels), "knn_k": k}


def _accuracy(found: Tensor, labels: Tensor) -> float:
    return 100 * (found == labels).float().mean().item()
