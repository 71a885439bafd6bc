"""A sweep shares what can be shared, runs every stage for each value, and finds it again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from diffusers import DDPMPipeline, DDPMScheduler

from benchmarks.common import tiny_unet
from clsp.evaluate.__main__ import main
from clsp.evaluate.config import EvaluateConfig
from clsp.generate.config import GenerateConfig
from clsp.points import Stages, plan_points
from clsp.shards.store import open_set
from clsp.sweep import _make_sets
from clsp.train.config import TrainConfig

BASE = Stages(GenerateConfig(), TrainConfig(positive="synthetic"), EvaluateConfig())


def test_one_setting_is_changed_at_a_time_and_equal_ones_are_shared() -> None:
    points = plan_points(BASE, {"w": [0.5, 0.1], "lambda": [0.0], "K": [16, 4], "epochs": [1000]})
    assert {axis: list(values) for axis, values in points.items()} == {
        "w": [0.1, 0.5],
        "lambda": [0.0, 1.0],
        "K": [4, 8, 16],
        "epochs": [1000],
    }
    names = {axis: [p.run_name(0) for p in of.values()] for axis, of in points.items()}
    base = BASE.run_name(0)
    assert base == "w0.1-K8-steps100-lambda1-epochs1000-seed0"
    assert names["w"] == [base, base.replace("w0.1", "w0.5")]
    assert names["epochs"] == [base]
    assert [p.generate for p in points["lambda"].values()] == [BASE.generate] * 2
    with pytest.raises(ValueError, match=r"w is 1\.5, expected a share"):
        plan_points(BASE, {"w": [1.5]})
    plain = Stages(BASE.generate, TrainConfig(), BASE.probe)
    with pytest.raises(ValueError, match="positive is 'none': give a recipe such as clsp-simclr"):
        plan_points(plain, {"w": [0.2]})


def test_every_stage_runs_for_each_value(
    open_page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    DDPMPipeline(unet=tiny_unet(), scheduler=DDPMScheduler()).save_pretrained(tmp_path / "model")
    recipes = {
        "generate": "positives = 2\nsteps = 2\nshard_size = 400\n",
        "pretrain": 'positive = "synthetic"\narch = "conv-tiny"\nhidden = 16\ndim = 8\n'
        "epochs = 1\nbatch = 64\nlr_warmup = 1\n",
        "probe": "epochs = 5\nepisodes = 2\nlbfgs = false\nflip = false\nshots = [1]\n",
    }
    flags = []
    for name, text in recipes.items():
        (tmp_path / f"{name}.toml").write_text(text)
        flags.append(f"--{name}={tmp_path / name}.toml")
    out = tmp_path / "out"
    flags += ["--images=digits:test", f"--model={tmp_path / 'model'}", "--train=digits:test"]
    flags += ["--test=digits:test", f"--out={out}", f"--cache={tmp_path / 'cache'}"]
    flags += ["--device=cpu", "--workers=1", "--over=lambda=0,1", "--over=K=1"]
    result = CliRunner().invoke(main, ["sweep", *flags])
    assert result.exit_code == 0, result.output
    values = json.loads((out / "sweep.json").read_text())["sweep"]
    assert {axis: list(found) for axis, found in values.items()} == {
        "lambda": ["0", "1"],
        "K": ["1", "2"],
    }
    assert values["lambda"]["1"] == values["K"]["2"]  # the base, run once
    assert len(list((out / "runs").iterdir())) == 3
    names = ("w0.1-K1-steps2-of-K2", "w0.1-K2-steps2")
    one, two = (open_set(out / "sets" / name) for name in names)
    assert (one.positives, two.positives) == (1, 2)
    np.testing.assert_array_equal(one.pixels(7, ["p0"]), two.pixels(7, ["p0"]))
    scores = [v["scores"][0]["linear_top1"] for found in values.values() for v in found.values()]
    assert all(0 <= score <= 100 for score in scores)
    assert (out / "sweep.md").read_text() in result.output
    with open_page(out / "report.html", width=390) as (page, wrong):
        assert page.locator("tbody tr").count() == 4
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert wrong == []
    for stage in ("clsp.train.loop.train", "clsp.evaluate.__main__.evaluate"):
        monkeypatch.setattr(stage, None)
    again = CliRunner().invoke(main, ["sweep", *flags])
    assert again.exit_code == 0, again.output
    assert json.loads((out / "sweep.json").read_text())["sweep"] == values


def test_a_larger_k_in_the_same_folder_leaves_the_sets_that_are_there(tmp_path: Path) -> None:
    DDPMPipeline(unet=tiny_unet(), scheduler=DDPMScheduler()).save_pretrained(tmp_path / "model")
    places = {"images": "digits:test", "model": str(tmp_path / "model")}
    config = GenerateConfig(positives=2, steps=2, shard_size=400)
    base = Stages(config, BASE.train, BASE.probe)

    def make(*counts: int) -> dict[str, str]:
        points = [base.at("K", count) for count in counts]
        made = _make_sets(points, places, tmp_path, "cpu", 1)
        for point in points:
            assert open_set(made[point.set_name()]).positives == point.value("K")
        return {name: open_set(folder).id for name, folder in made.items()}

    narrow = make(1, 2)
    wide = make(1, 2, 3)
    assert {name: wide[name] for name in narrow} == narrow
    assert len(wide) == 3


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ("eta=0,1", "'eta=0,1' is not NAME=VALUE,... with NAME of w, K, steps, lambda, epochs"),
        ("K=1,2.5", "'1,2.5' is not int values joined by commas"),
    ],
)
def test_a_bad_axis_is_a_usage_error(over: str, message: str) -> None:
    places = ["--images=digits", "--model=m", "--train=digits", "--test=digits", "--out=o"]
    result = CliRunner().invoke(main, ["sweep", f"--over={over}", *places])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
