"""The term that pulls an anchor's view and its third view together."""

from __future__ import annotations

from torch import Tensor


def positive_term(z: Tensor, z_positive: Tensor) -> Tensor:
    """Return mean(2 - 2 z.z_positive), the mean squared distance on the unit sphere.

    z, z_positive: (B, D) of unit length. The third view is never a negative.

    Zeng et al., 2024, arXiv:2408.16965.
    """
    return (2 - 2 * (z * z_positive).sum(dim=1)).mean()
