"""Which positives a range of hardness lets through, against a slow loop, and in training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from clsp.shards.scores import save_hardness
from clsp.train.__main__ import main
from clsp.train.config import TrainConfig
from clsp.train.hardness import HardnessRange, parse_range
from clsp.train.tuples import TupleBatches

ROWS = np.arange(50)


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).random((50, 4), np.float32)


def slow_choice(values: np.ndarray, draw: float, least: float, greatest: float) -> int:
    inside = [k for k, value in enumerate(values) if least <= value <= greatest]
    if not inside:
        return min(
            range(len(values)), key=lambda k: min(abs(values[k] - least), abs(values[k] - greatest))
        )
    return inside[int(draw * len(inside))]


@pytest.mark.parametrize("part", [(0.2, 0.8), (0.0, 0.1), (0.95, 1.0)])
def test_choices_are_those_of_a_slow_loop(values: np.ndarray, part: tuple[float, float]) -> None:
    draws = np.random.default_rng(1).random(50)
    least, greatest = np.quantile(values, part)
    expected = [slow_choice(v, d, least, greatest) for v, d in zip(values, draws, strict=True)]
    assert HardnessRange(values, *part).choose(ROWS, draws[:, None], 0)[:, 0].tolist() == expected


def test_the_whole_range_draws_as_if_there_was_none(values: np.ndarray) -> None:
    draws = np.random.default_rng(1).random(50)
    found = HardnessRange(values, 0, 1).choose(ROWS, draws[:, None], 0)
    np.testing.assert_array_equal(found[:, 0], (draws * 4).astype(int))


def test_a_curriculum_rises_to_the_range(values: np.ndarray) -> None:
    harder = HardnessRange(values, 0.2, 0.8, curriculum=3)
    shares = [(values <= harder.limits(epoch)[1]).mean() for epoch in range(5)]
    assert shares == pytest.approx([0.4, 0.6, 0.8, 0.8, 0.8], abs=0.01)
    assert {harder.limits(epoch)[0] for epoch in range(5)} == {harder.limits(0)[0]}


@pytest.mark.parametrize("text", ["0.8:0.2", "0.5", "a:b", "-1:0.5", "0:1.5", "0:nan"])
def test_a_range_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="hardness is"):
        parse_range(text)
    result = CliRunner().invoke(main, ["--set=x", "--out=y", "--hardness", text])
    assert result.exit_code == 2


def test_only_synthetic_positives_have_a_hardness() -> None:
    with pytest.raises(ValueError, match="but positive is none"):
        TrainConfig(hardness="0:0.5")
    with pytest.raises(ValueError, match="hardness_curriculum is -1"):
        TrainConfig(positive="synthetic", hardness_curriculum=-1)


def test_batches_hold_positives_of_the_range_only(make_set, tmp_path: Path) -> None:
    """p0 is easy and p1 hard in every record; the digits that follow tell them apart."""
    shards = make_set(tmp_path / "set")
    values = np.tile(np.array([[0.0, 1.0]], np.float32), (40, 1))
    easy = TupleBatches(shards, 8, 0, positives=1, hardness=HardnessRange(values, 0, 0.5))
    hard = TupleBatches(shards, 8, 0, positives=1, hardness=HardnessRange(values, 0.75, 1))
    rows = {shards.key(n): n for n in range(40)}
    assert len(rows) == 40
    first, second = (
        {tuple(shards.pixels(n, [name])[0].ravel().tolist()) for n in range(40)}
        for name in ("p0", "p1")
    )
    for step in range(5):
        for batches, mine in ((easy, first), (hard, second)):
            for image in batches[step].positives[:, 0]:
                assert tuple(image.permute(1, 2, 0).numpy().ravel().tolist()) in mine
        assert not np.array_equal(easy[step].positives, hard[step].positives)


def test_the_command_trains_on_a_range(make_set, tmp_path: Path) -> None:
    shards = make_set(tmp_path / "set")
    small = ["--arch=conv-tiny", "--hidden=8", "--dim=4", "--batch=16", "--epochs=2"]
    flags = [f"--set={shards.folder}", f"--cache={tmp_path}", "--positive=synthetic", *small]
    flags += ["--hardness=0:0.5", "--hardness-curriculum=2"]
    missing = CliRunner().invoke(main, [*flags, f"--out={tmp_path / 'a'}"])
    assert missing.exit_code == 1
    assert "`clsp evaluate positives SET --score` measures it" in missing.output
    values = np.random.default_rng(0).random((40, 2), np.float32)
    save_hardness(shards, values, "ab" * 32, "1 - cosine")
    result = CliRunner().invoke(main, [*flags, f"--out={tmp_path / 'b'}"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "b" / "encoder" / "encoder.json").is_file()
    assert result.stdout == f"{tmp_path / 'b' / 'encoder'}\n"  # where the result lies
    save_hardness(shards, values[::-1], "ab" * 32, "1 - cosine")
    again = CliRunner().invoke(main, [*flags, f"--out={tmp_path / 'b'}"])
    assert again.exit_code == 1
    assert "is of a run on hardness " in again.output
