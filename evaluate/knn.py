"""Weighted k-nearest-neighbour accuracy, with k and temperature chosen on a validation split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .config import KS, TEMPERATURES
from .features import Features
from .neighbours import largest, products
from .split import check_labels, split_validation

_CHUNK = 512  # test images at a time: 102 MB of similarities with 50,000 training images


def knn_predict(train: Features, test: Features, k: int, temperature: float = 0.07) -> Tensor:
    """Return each test image's class, (N,): neighbours vote with exp(cosine / temperature).

    Raises ValueError when there are fewer than k training images.

    Wu et al., 2018, arXiv:1805.01978.
    """
    found = [
        _vote(train, similarity, neighbours, temperature).argmax(dim=1)
        for similarity, neighbours in _nearest(train, test, k)
    ]
    return torch.cat(found)


def _nearest(train: Features, test: Features, k: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield cosine and index, each (n, k), of the nearest training images, nearest first."""
    if not 1 <= k <= len(train.labels):
        raise ValueError(f"kNN with k = {k}, but there are {len(train.labels)} training images")
    bank = normalize(train.plain, dim=1)
    for queries in normalize(test.plain, dim=1).split(_CHUNK):
        yield largest(products(queries, bank), k)


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
    rows = iter(validation.labels.split(_CHUNK))
    for similarity, neighbours in _nearest(fit, validation, tried[-1]):
        labels = next(rows)
        for number, (k, temperature) in enumerate(pairs):
            votes = _vote(fit, similarity[:, :k], neighbours[:, :k], temperature)
            right[number] += (votes.argmax(dim=1) == labels).sum().cpu()
    k, temperature = pairs[int(right.argmax())]
    found = knn_predict(train, test, k, temperature)
    hits = (found == test.labels).double().mean().item()
    return {"knn": 100 * hits, "knn_k": k, "knn_t": temperature}
