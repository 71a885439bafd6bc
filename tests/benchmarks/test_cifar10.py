"""The CIFAR-10 experiment: what its plan promises, and a whole run in a tiny size."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image
from sklearn.datasets import load_digits

from benchmarks.cifar10 import main, measure_speeds
from benchmarks.cifar10_plan import FIRST, Budget, Speeds, plan_budget

SPEEDS = Speeds({64: 1e-4, 128: 3e-4}, {64: 3e-5, 128: 1e-4}, 1e-4, 1e-5)
SIZE = {"anchors": 50_000, "probed": 60_000, "seeds": 2, "batch": 256}


def test_the_plan_fits_and_more_time_is_never_less() -> None:
    budgets = [plan_budget(60 * minutes, SPEEDS, **SIZE) for minutes in (5, 10, 30, 60, 240)]
    for minutes, budget in zip((5, 10, 30, 60, 240), budgets, strict=True):
        total = budget.seconds["fit"] + budget.seconds["generate"]
        assert total + len(FIRST) * SIZE["seeds"] * budget.seconds["arm"] <= 60 * minutes
    for less, more in pairwise(budgets):
        assert (more.width, more.epochs) >= (less.width, less.epochs)
        assert more.positives * more.sample_steps >= less.positives * less.sample_steps
    assert budgets[0].width == 64
    assert budgets[-1].width == 128


def test_a_finished_stage_leaves_its_time_to_the_others() -> None:
    whole = plan_budget(1800, SPEEDS, **SIZE)
    with_model = plan_budget(1800, SPEEDS, fit=False, **SIZE)
    with_set = plan_budget(1800, SPEEDS, fit=False, generate=False, **SIZE)
    assert whole.epochs < with_model.epochs < with_set.epochs
    assert with_model.fit_steps == with_set.seconds["generate"] == 0


def test_too_little_time_says_how_much_is_needed() -> None:
    with pytest.raises(ValueError, match=r"does not fit into 0\.1 minutes here; about \d"):
        plan_budget(6, SPEEDS, **SIZE)


def test_the_probe_measures_every_stage() -> None:
    speeds = measure_speeds()
    assert set(speeds.fit) == set(speeds.sample)
    for width, seconds in speeds.fit.items():
        assert seconds > speeds.sample[width] > 0  # a step is a call and its gradient
    assert speeds.train > speeds.features > 0


def test_a_tiny_run_reports_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    digits = load_digits()
    for index in range(96):
        part = "test" if index % 3 == 2 else "train"
        folder = tmp_path / "images" / part / str(digits.target[index] % 2)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = (digits.images[index] * 255 / 16).round().astype("uint8")
        Image.fromarray(pixels).resize((32, 32)).save(folder / f"{index:03d}.png")
    out = tmp_path / "out"
    out.mkdir()
    # A kept plan, so that a slow machine is not given more to do than a fast one.
    seconds = {"fit": 5.0, "generate": 5.0, "arm": 60.0}
    budget = Budget(16, 20, positives=1, sample_steps=3, epochs=2, seconds=seconds)
    (out / "plan.json").write_text(json.dumps({"budget": asdict(budget)}))
    places = [f"--images={tmp_path / 'images'}", f"--out={out}", "--minutes=0.1", "--seeds=1"]
    first = CliRunner().invoke(main, places)
    assert first.exit_code == 0, first.output
    values = json.loads((out / "cifar10.json").read_text())
    assert set(FIRST) <= set(values["scores"])
    gain = values["scores"]["clsp-simclr"]["linear_top1"][0]
    gain -= values["scores"]["simclr"]["linear_top1"][0]
    assert values["clsp_gain"]["mean"] == pytest.approx(gain)
    assert values["frechet"]["value"] > 0
    assert "Anchors and their positives" in (out / "report.html").read_text()
    again = CliRunner().invoke(main, places)
    assert again.exit_code == 0, again.output
    assert json.loads((out / "cifar10.json").read_text())["seconds"] == values["seconds"]
