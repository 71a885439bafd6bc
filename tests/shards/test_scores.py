"""The hardness sidecar: what was written comes back, and nothing else is taken for it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from clsp.shards.check import ShardError
from clsp.shards.reader import ShardSet
from clsp.shards.scores import load_hardness, save_hardness
from clsp.shards.store import open_set

VALUES = np.linspace(0, 1, 80, dtype=np.float32).reshape(40, 2)


@pytest.fixture
def scored(make_set, tmp_path) -> ShardSet:
    shards = make_set(tmp_path / "set")
    path = save_hardness(shards, VALUES, "ab" * 32, "1 - cosine")
    assert path == shards.folder / "scores" / "hardness.npy"
    return shards


def test_hardness_comes_back_and_the_set_stays_what_it_is(scored: ShardSet) -> None:
    again = open_set(scored.folder)
    again.verify(deep=True)
    values, about = load_hardness(again)
    np.testing.assert_array_equal(values, VALUES)
    assert (about.set, about.encoder, about.measure) == (scored.id, "ab" * 32, "1 - cosine")


def test_a_set_without_hardness_says_how_to_get_it(digit_set: ShardSet) -> None:
    with pytest.raises(ShardError, match=r"hardness.json is missing.*`clsp evaluate positives"):
        load_hardness(digit_set)


def test_values_that_do_not_fit_are_not_written(digit_set: ShardSet) -> None:
    with pytest.raises(ValueError, match=r"shape \(40, 3\), expected \(40, 2\)"):
        save_hardness(digit_set, np.zeros((40, 3), np.float32), "", "")
    holed = VALUES.copy()
    holed[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"hardness of digit-0003.p1 is nan"):
        save_hardness(digit_set, holed, "", "")
    assert not (digit_set.folder / "scores").exists()


def test_another_sets_hardness_is_refused(scored: ShardSet) -> None:
    path = scored.folder / "scores" / "hardness.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "set": "cd" * 32}))
    with pytest.raises(ShardError, match="is of set cdcdcdcdcdcd"):
        load_hardness(scored)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (np.zeros((40, 2)), r"holds float64 \(40, 2\), expected float32 \(40, 2\)"),
        (np.zeros((39, 2), np.float32), r"float32 \(39, 2\)"),
        (np.array([object()]), "holds no hardness"),
    ],
)
def test_a_wrong_array_is_refused(scored: ShardSet, damage: np.ndarray, message: str) -> None:
    np.save(scored.folder / "scores" / "hardness.npy", damage, allow_pickle=True)
    with pytest.raises(ShardError, match=message):
        load_hardness(scored)
