"""Metrics of classification: scores (N, C) and labels in, percent out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_RECALLS = torch.arange(11, dtype=torch.float64) / 10


def accuracy(scores: Tensor, labels: Tensor, k: int = 1) -> float:
    """Return how often the label is among the k classes of highest score, in percent.

    scores: (N, C); labels: (N,). Raises ValueError when there are fewer than k classes.
    """
    if k > scores.shape[1]:
        raise ValueError(f"top-{k} accuracy of {scores.shape[1]} classes: it would always be 100 %")
    hits = scores.topk(k, dim=1).indices == labels[:, None]
    return 100 * hits.any(dim=1).double().mean().item()


def mean_per_class(scores: Tensor, labels: Tensor) -> float:
    """Return the mean over the classes of the accuracy within each, in percent.

    scores: (N, C); labels: (N,). Raises ValueError for a class without an image.
    """
    counts = labels.bincount(minlength=scores.shape[1])
    if not counts.all():
        raise ValueError(f"class {counts.argmin().item()} has no image to be measured on")
    right = labels[scores.argmax(dim=1) == labels].bincount(minlength=scores.shape[1])
    return 100 * (right / counts).double().mean().item()


def mean_average_precision(scores: Tensor, labels: Tensor) -> float:
    """Return the mean over the classes of the average precision of VOC 2007, in percent.

    Of a class that is the mean, over the recalls 0, 0.1, ..., 1, of the best precision at that
    recall or a higher one. scores: (N, C); labels: (N, C) of 1, 0, and -1 for what is left out.
    Raises ValueError for a class without a positive image.

    Everingham et al., 2010, doi:10.1007/s11263-009-0275-4.
    """
    found = []
    for number, (score, label) in enumerate(zip(scores.T, labels.T, strict=True)):
        score, label = score[label >= 0], label[label >= 0]
        if not (label == 1).any():
            raise ValueError(f"class {number} has no positive image to be measured on")
        positive = label[score.argsort(descending=True, stable=True)].double()
        hits = positive.cumsum(0)
        precision = hits / torch.arange(1, len(hits) + 1, device=hits.device)
        # The small step keeps a recall such as 3 of 30 from missing 0.1 by rounding.
        reached = (hits / hits[-1])[None] >= _RECALLS.to(hits.device)[:, None] - 1e-9  # (11, N)
        found.append((precision * reached).max(dim=1).values.mean())
    return 100 * torch.stack(found).mean().item()


METRICS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "accuracy": accuracy,
    "mean per class": mean_per_class,
    "mAP": mean_average_precision,
}
