"""Which positives training may draw, by how hard they are."""

from __future__ import annotations

import numpy as np

from ..shards.order import F64, I64
from ..shards.scores import F32


def parse_range(text: str) -> tuple[float, float]:
    """Return (low, high) of "LOW:HIGH", shares with 0 <= low < high <= 1. Raises ValueError."""
    try:
        low, high = map(float, text.split(":"))
    except ValueError:
        raise ValueError(f"hardness is {text!r}, expected LOW:HIGH such as 0.2:0.8") from None
    if not 0 <= low < high <= 1:
        raise ValueError(f"hardness is {text!r}, expected 0 <= LOW < HIGH <= 1")
    return low, high


class HardnessRange:
    """Draws among the positives whose hardness is between two quantiles of the whole set.

    An anchor that has none there gives its positive nearest to the range, so that an epoch is
    never shorter. curriculum: the upper end rises to `high` in equal steps over so many epochs.
    """

    def __init__(self, values: F32, low: float, high: float, curriculum: int = 0) -> None:
        """values: (N, K), a larger one is harder; low, high: shares in [0, 1]."""
        self.values, self.low, self.high, self.curriculum = values, low, high, curriculum
        self._epoch = -1

    def limits(self, epoch: int) -> tuple[float, float]:
        """Return the least and greatest hardness that is drawn in an epoch."""
        part = min(1.0, (epoch + 1) / self.curriculum) if self.curriculum else 1.0
        quantiles = (self.low, self.low + part * (self.high - self.low))
        least, greatest = np.quantile(self.values, quantiles)
        return float(least), float(greatest)

    def choose(self, rows: I64, draws: F64, epoch: int) -> I64:
        """Return which M positives each record gives, (B, M) in 0..K-1.

        rows: (B,) record numbers; draws: (B, M) in [0, 1). When fewer than M are in the range, the
        nearest ones follow.
        """
        if epoch != self._epoch:
            self._limits, self._epoch = self.limits(epoch), epoch
        least, greatest = self._limits
        values = self.values[rows]
        return draw_slots(np.maximum(least - values, values - greatest).clip(0), draws)


def draw_slots(distance: F64 | F32, draws: F64) -> I64:
    """Return M different numbers in 0..K-1 a row, each drawn among the ones of least distance.

    distance: (B, K); draws: (B, M) in [0, 1), one for each number. (B, M).
    """
    rows, left = np.arange(len(draws)), distance.copy()
    slots = np.empty(draws.shape, np.int64)
    for j, draw in enumerate(draws.T):
        allowed = left == left.min(axis=1, keepdims=True)
        number = (draw * allowed.sum(axis=1)).astype(np.int64)
        # The place at which one more than `number` allowed ones have been seen.
        slots[:, j] = (allowed.cumsum(axis=1) > number[:, None]).argmax(axis=1)
        left[rows, slots[:, j]] = np.inf
    return slots
