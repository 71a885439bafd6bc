"""Weighted k-nearest-neighbour accuracy, with k and temperature chosen on a validation split."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .config import KS, TEMPERATURES
from .features import Features
from .neighbours import nearest_by_chunk
from .split import check_labels, split_validation


def knn_predict(train: Features, test: Features, k: int, temperature: float = 0.07) -> Tensor:
    """Return each test image's class, (N,): neighbours vote with exp(cosine / temperature).

    Raises ValueError when there are fewer than k training images.

    Wu et al., 2018, arXiv:1805.01978.
    """
    if not 1 <= k <= len(train.labels):
        raise ValueError(f"kNN with k = {k}, but there are {len(train.labels)} training images")
    found = [
        _vote(train, similarity, neighbours, temperature).argmax(dim=1)
        for similarity, neighbours in nearest_by_chunk(test.plain, train.plain, k)
    ]
    return torch.cat(found)


def _vote(train: Features, similarity: Tensor, neighbours: Tensor, temperature: float) -> Tensor:
    votes = similarity.new_zeros(len(similarity), len(train.classes))
    # Relative to the nearest one: the same ranking, and nothing overflows.
    weights = ((similarity - similarity[:, :1]) / temperature).exp()
    return votes.scatter_add_(1, train.labels[neighbours], weights)


def knn(
    train: Features,
    test: Features,
    seed: int = 0,
    *,
    ks: Sequence[int] = KS,
    temperatures: Sequence[float] = TEMPERATURES,
) -> dict[str, float]:
    """Return "knn", the accuracy in percent on `test`, with "knn_k" and "knn_t", the chosen values.

    The pair is the best on a validation split of `train`; of equals the smallest k, then the
    smallest temperature. Then all of `train` votes on `test`. A k above the size of what is left
    of `train` is not tried.
    Raises ValueError when none is left to try, and for a class with a single image.
    """
    check_labels(train, "kNN")
    fit, validation = split_validation(train, seed)
    tried = [k for k in sorted(ks) if k <= len(fit.labels)]
    if not tried:
        raise ValueError(
            f"kNN with k of {', '.join(map(str, ks))}, but {len(fit.labels)} training images are "
            "left when the validation split is set aside"
        )
    pairs = [(k, temperature) for k in tried for temperature in sorted(temperatures)]
    right = torch.zeros(len(pairs))
    start = 0
    for similarity, neighbours in nearest_by_chunk(validation.plain, fit.plain, tried[-1]):
        labels = validation.labels[start : start + len(similarity)]
        start += len(similarity)
        for number, (k, temperature) in enumerate(pairs):
            votes = _vote(fit, similarity[:, :k], neighbours[:, :k], temperature)
            right[number] += (votes.argmax(dim=1) == labels).sum().cpu()
    k, temperature = pairs[int(right.argmax())]
    found = knn_predict(train, test, k, temperature)
    hits = (found == test.labels).double().mean().item()
    return {"knn": 100 * hits, "knn_k": k, "knn_t": temperature}
