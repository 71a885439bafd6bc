"""Nearest neighbours by cosine, as numbers and as pictures."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..shards.images import ImageSource, load_pixels
from ..shards.preview import contact_sheet
from .features import Features

_CHUNK = 1024  # queries at a time


def nearest(
    queries: Tensor, bank: Tensor, k: int, own: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return cosines of each query's nearest rows of the bank, and their numbers, (M, k) each.

    queries: (M, F); bank: (N, F); own: (M,) a row of the bank that does not count for each query.
    Raises ValueError when the bank has fewer than k rows that count.
    """
    most = len(bank) - (own is not None)
    if k > most:
        raise ValueError(f"{k} nearest neighbours were asked for, there are {most}")
    bank = normalize(bank, dim=1)
    found = []
    for start in range(0, len(queries), _CHUNK):
        part = normalize(queries[start : start + _CHUNK], dim=1) @ bank.T
        if own is not None:
            part.scatter_(1, own[start : start + _CHUNK, None].to(part.device), -2.0)
        found.append(part.topk(k, dim=1))
    return torch.cat([p.values for p in found]), torch.cat([p.indices for p in found])


def neighbours_sheet(
    train: Features,
    test: Features,
    sources: tuple[ImageSource, ImageSource],
    size: int,
    queries: int = 10,
    k: int = 8,
) -> bytes:
    """Return a PNG: each row is a test image, a gap, and its nearest training images.

    queries: how many test images, spread evenly; sources: of the training and the test images;
    size: pixels a side at which they are shown.
    """
    rows = np.linspace(0, len(test.plain) - 1, min(queries, len(test.plain))).astype(int)
    _, found = nearest(test.plain[rows], train.plain, min(k, len(train.plain)))
    images = load_pixels(sources[0], found.flatten().tolist(), size)
    shown = load_pixels(sources[1], rows.tolist(), size)
    return contact_sheet(shown, images.reshape(*found.shape, *images.shape[1:]))
