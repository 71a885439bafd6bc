"""Nearest neighbours by cosine, as numbers and as pictures."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..recipes import progress
from ..shards.images import ImageSource, load_pixels
from ..shards.preview import contact_sheet
from .features import Features

_CHUNK = 512  # queries at a time: 102 MB of cosines with a bank of 50,000
_BLOCKS = 8  # columns of which only the largest is looked at first


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
    found = list(nearest_by_chunk(queries, bank, k, own))
    return torch.cat([values for values, _ in found]), torch.cat([rows for _, rows in found])


def nearest_by_chunk(
    queries: Tensor, bank: Tensor, k: int, own: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what `nearest` returns, some queries at a time; k is at most the bank's rows."""
    bank = normalize(bank, dim=1)
    with progress(len(queries), "neighbours", "image") as bar:
        for start in range(0, len(queries), _CHUNK):
            part = products(normalize(queries[start : start + _CHUNK], dim=1), bank)
            if own is not None:
                part.scatter_(1, own[start : start + _CHUNK, None].to(part.device), -2.0)
            yield largest(part, k)
            bar.update(len(part))


def products(queries: Tensor, bank: Tensor) -> Tensor:
    """Return queries @ bank.T, (M, N)."""
    if queries.device.type != "cpu" or queries.dtype != torch.float32:
        return queries @ bank.T
    # numpy's OpenBLAS multiplies faster than torch's MKL on processors that are not Intel's.
    return torch.from_numpy(queries.numpy() @ bank.numpy().T)


def largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest of each row, falling, and their columns, (M, k) each; values: (M, N).

    The same as topk, but for which of equal values is taken. On a CPU the columns are looked at in
    blocks: the k largest lie in the k blocks with the largest maxima. numpy's partition is many
    times as fast as torch's topk.
    """
    columns = values.shape[1] // _BLOCKS  # of a block's members, which lie this far apart
    if values.device.type != "cpu" or columns < 2 * k:
        found = values.topk(k, dim=1)
        return found.values, found.indices
    every, whole = values.numpy(), columns * _BLOCKS
    maxima = reduce(np.maximum, (every[:, n : n + columns] for n in range(0, whole, columns)))
    blocks = _top(maxima, k)
    members = (blocks[:, None] + np.arange(0, whole, columns)[:, None]).reshape(len(every), -1)
    rest = np.broadcast_to(np.arange(whole, every.shape[1]), (len(every), every.shape[1] - whole))
    members = np.hstack([members, rest])
    members = np.take_along_axis(members, _top(np.take_along_axis(every, members, 1), k), 1)
    near, places = torch.from_numpy(np.take_along_axis(every, members, 1)).sort(descending=True)
    return near, torch.from_numpy(members).gather(1, places)


def _top(values: np.ndarray, k: int) -> np.ndarray:
    """The columns of the k largest of each row, in any order."""
    columns: np.ndarray = np.argpartition(values, values.shape[1] - k, axis=1)[:, -k:]
    return columns


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
