"""How far two sets of features are apart, as a whole, with confidence intervals.

Both distances compare distributions in any feature space. Their intervals come from leaving out a
tenth of the images at a time (Tukey's jackknife), which, unlike the bootstrap, repeats no image:
repeated images would raise both distances.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor

GROUPS = 10
CONFIDENCE = 0.95


class Distance(NamedTuple):
    """A distance and the ends of its 95 % confidence interval."""

    value: float
    low: float
    high: float


def frechet_distance(a: Tensor, b: Tensor) -> Distance:
    """Return the Frechet distance of two Gaussians fitted to features (N, F) and (M, F).

    It is biased upwards by few images: compare it at equal numbers of images only.
    Raises ValueError for fewer than 20 images. Heusel et al., 2017, arXiv:1706.08500.
    """
    return _jackknife(a, b, _frechet)


def kernel_distance(a: Tensor, b: Tensor) -> Distance:
    """Return the squared maximum mean discrepancy with the kernel (x.y / F + 1)^3, unbiased.

    a, b: (N, F) and (M, F). Raises ValueError for fewer than 20 images.
    Binkowski et al., 2018, arXiv:1801.01401.
    """
    return _jackknife(a, b, _kernel)


def _frechet(a: Tensor, b: Tensor) -> float:
    (mean_a, cov_a), (mean_b, cov_b) = _gaussian(a), _gaussian(b)
    # The trace of the root of cov_a cov_b, by matrices that stay symmetric.
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    spread = cov_a.trace() + cov_b.trace() - 2 * cross
    return float((mean_a - mean_b).square().sum() + spread)


def _gaussian(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean(dim=0), x.T.cov()


def _kernel(a: Tensor, b: Tensor) -> float:
    def total(x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([_polynomial(part, y).sum() for part in x.split(1024)]).sum()

    n, m = len(a), len(b)
    own_a, own_b = (((x.square().sum(dim=1) / x.shape[1]) + 1).pow(3).sum() for x in (a, b))
    within = (total(a, a) - own_a) / (n * (n - 1)) + (total(b, b) - own_b) / (m * (m - 1))
    return float(within - 2 * total(a, b) / (n * m))


def _polynomial(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1).pow(3)


def _jackknife(a: Tensor, b: Tensor, distance: Callable[[Tensor, Tensor], float]) -> Distance:
    fewest = min(len(a), len(b))
    if fewest < 2 * GROUPS:
        raise ValueError(f"a distance of {fewest} images was asked for, expected {2 * GROUPS}")
    a, b = a.double(), b.double()
    groups = [_groups(len(x)).to(x.device) for x in (a, b)]
    without = [distance(a[groups[0] != number], b[groups[1] != number]) for number in range(GROUPS)]
    value = distance(a, b)
    error = float(np.sqrt((GROUPS - 1) * np.var(without)))
    reach = float(student.ppf((1 + CONFIDENCE) / 2, GROUPS - 1)) * error
    return Distance(value, value - reach, value + reach)


def _groups(count: int) -> Tensor:
    """Return a group for each of so many images, drawn, because images may come in any pattern."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0)) % GROUPS
