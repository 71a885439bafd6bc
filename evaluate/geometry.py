"""How features lie in space: functions of feature matrices."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

_SEED = 0


def alignment(first: Tensor, second: Tensor) -> float:
    """Return the mean squared distance of two views' features on the unit sphere; 0 is best.

    first, second: (N, F). Wang & Isola, 2020, arXiv:2005.10242.
    """
    return float((normalize(first, dim=1) - normalize(second, dim=1)).square().sum(dim=1).mean())


def uniformity(x: Tensor) -> float:
    """Return the logarithm of the mean of exp(-2 d^2) over pairs of features on the unit sphere.

    x: (N, F), N at least 2. 0 when all are one point; the lower, the more evenly they are spread.
    Wang & Isola, 2020, arXiv:2005.10242.
    """
    x, count = normalize(x, dim=1), len(x)
    total = torch.stack([(4 * (part @ x.T) - 4).exp().sum() for part in x.split(1024)]).sum()
    return float(((total - count) / (count * (count - 1))).log())


def effective_rank(x: Tensor) -> float:
    """Return exp of the entropy of the singular values of (N, F), from 1 to min(N, F).

    Roy & Vetterli, 2007, EUSIPCO; as RankMe, Garrido et al., 2023, arXiv:2210.02885.
    """
    values = torch.linalg.svdvals(x.double())
    shares = values[values > 0] / values.sum()
    return float((-(shares * shares.log()).sum()).exp())


def tsne(x: Tensor) -> np.ndarray:
    """Return (N, 2) by t-SNE. van der Maaten & Hinton, 2008, JMLR 9."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(x) - 1) / 3)
    method = TSNE(perplexity=perplexity, init="pca", random_state=_SEED)
    return np.asarray(method.fit_transform(normalize(x, dim=1).numpy()))


def umap(x: Tensor) -> np.ndarray:
    """Return (N, 2) by UMAP. Raises ValueError without the extra.

    McInnes et al., 2018, arXiv:1802.03426.
    """
    try:
        from umap import UMAP
    except ImportError as error:
        raise ValueError("UMAP is an extra: pip install 'clsp[umap]'") from error
    method = UMAP(n_neighbors=min(15, len(x) - 1), metric="cosine", random_state=_SEED, n_jobs=1)
    return np.asarray(method.fit_transform(x.numpy()))
