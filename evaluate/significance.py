"""Which differences between arms are beyond the noise of their seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import ttest_rel

LEVEL = 0.05
NAME = "paired t-test over seeds, two-sided, Holm's correction over the comparisons"


class Difference(NamedTuple):
    """How an arm differs from the one it is compared with.

    each: the difference in every seed; p: the corrected p value, nan where there are fewer than 2.
    """

    each: tuple[float, ...]
    p: float

    @property
    def beyond_noise(self) -> bool:
        """Whether p is below 0.05."""
        return self.p < LEVEL


def paired_differences(
    base: Sequence[float], others: Sequence[Sequence[float]]
) -> list[Difference]:
    """Return the differences of each other arm from `base`, seed by seed, with corrected p values.

    base, others: one score a seed, in the same order of seeds. Holm, 1979, Scand. J. Stat. 6.
    """
    pairs = [tuple(float(a - b) for a, b in zip(arm, base, strict=True)) for arm in others]
    corrected = holm([_p_value(each) for each in pairs])
    return [Difference(each, p) for each, p in zip(pairs, corrected, strict=True)]


def _p_value(each: tuple[float, ...]) -> float:
    if len(each) < 2:
        return float("nan")
    if len(set(each)) == 1:  # no spread to measure by: no difference, or one without any noise
        return 0.0 if each[0] else 1.0
    return float(ttest_rel(each, np.zeros(len(each))).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for being n: the smallest times n, the next times n - 1 ..."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    raised = np.maximum.accumulate(np.array(p_values, float)[order] * factors)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(raised, 1.0)
    return [float(p) for p in corrected]
