"""Ranks on one machine train the encoder that one process would."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from clsp.shards.reader import ShardSet
from clsp.train.checkpoint import load_checkpoint

from .run_ranks import CASES, run


@pytest.fixture(scope="module")
def outs(digit_set: ShardSet, tmp_path_factory: pytest.TempPathFactory, launch) -> dict[int, Path]:
    """Every case on 1, 2 and 4 ranks; starting a rank costs more than all of them."""
    root = tmp_path_factory.mktemp("ranks")
    folder, script = str(digit_set.folder), str(Path(__file__).with_name("run_ranks.py"))
    for case in CASES:
        run(case, folder, root / "1", root / "cache")
    for world in (2, 4):
        launch(world, script, folder, str(root / str(world)), str(root / "cache"))
    return {world: root / str(world) for world in (1, 2, 4)}


def rows(out: Path, name: str) -> list[float]:
    return [json.loads(line)[name] for line in (out / "metrics.jsonl").open()]


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("case", CASES)
def test_ranks_train_as_one(outs: dict[int, Path], case: str, world: int) -> None:
    """Negatives with gradient: 20 losses, and the weights after them, are those of one rank."""
    one, many = outs[1] / case, outs[world] / case
    for name in ("loss", "embedding_std"):
        assert len(rows(many, name)) == 20
        assert rows(many, name) == pytest.approx(rows(one, name), abs=1e-4)
    first, second = (load_checkpoint(out / "checkpoints")[0] for out in (one, many))
    assert first.keys() == second.keys()
    for name in first:
        if not case.endswith("-bn"):
            torch.testing.assert_close(second[name], first[name], atol=1e-4, rtol=1e-3)
            continue
        # Batch norm divides what rounding differs by by small deviations, layer after layer: single
        # weights may be further off than a tensor as a whole.
        apart, length = (second[name] - first[name]).double().norm(), first[name].double().norm()
        assert apart <= 1e-2 * length + 1e-4, name


@pytest.mark.parametrize("case", CASES)
def test_what_an_objective_keeps_is_the_same_on_all_ranks(outs: dict[int, Path], case: str) -> None:
    """Bit for bit: MoCo's queues, the support sets, teachers, predictors, the centre."""
    kept = [json.loads((outs[4] / f"{case}-{rank}.json").read_text()) for rank in range(4)]
    assert all(own == kept[0] for own in kept)
    assert bool(kept[0]) == (not case.startswith("simclr"))
