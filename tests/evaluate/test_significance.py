"""The paired test against its definition, and Holm's correction against a slow loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import t

from clsp.evaluate.significance import holm, paired_differences


def test_the_test_is_students_on_the_differences() -> None:
    base, other = [70.0, 72.0, 71.0, 69.0], [71.0, 73.5, 71.5, 71.0]
    (found,) = paired_differences(base, [other])
    each = np.array([1.0, 1.5, 0.5, 2.0])
    assert found.each == tuple(each)
    statistic = each.mean() / (each.std(ddof=1) / 2)
    assert found.p == pytest.approx(2 * t.sf(statistic, 3))
    assert found.beyond_noise


def test_noise_is_rarely_called_a_difference() -> None:
    rng = np.random.default_rng(0)
    called = [
        any(d.beyond_noise for d in paired_differences(rng.normal(size=5), rng.normal(size=(3, 5))))
        for _ in range(400)
    ]
    assert np.mean(called) < 0.1  # 0.05 in the limit


def test_holm_is_the_step_down_of_the_paper() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_one_seed_and_no_spread_have_an_answer() -> None:
    (alone,) = paired_differences([1.0], [[2.0]])
    assert math.isnan(alone.p)
    assert not alone.beyond_noise
    same, shifted = paired_differences([1.0, 2.0], [[1.0, 2.0], [2.0, 3.0]])
    assert (same.p, shifted.p) == (1.0, 0.0)
