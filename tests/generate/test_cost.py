"""Costs: counted operations, and an estimate held against a real run."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from clsp.generate.__main__ import RECIPES, main
from clsp.generate.config import FitConfig, GenerateConfig
from clsp.generate.cost import Cost, count_flops, estimate, flops_of_positive
from clsp.generate.ddpm import build_unet
from clsp.generate.denoiser import DiffusionModel
from clsp.generate.diffusion import open_model
from clsp.generate.families import unet_run
from clsp.generate.job import Job, Worker
from clsp.generate.output import open_output
from clsp.generate.plan import ModelInfo, make_plan
from clsp.recipes import load_recipe
from clsp.shards.images import open_images

CONFIG = GenerateConfig(positives=3, steps=4, batch=20, shard_size=20, site="mid_block")


def test_the_shared_anchor_pass_is_worth_what_the_count_says() -> None:
    """The reference's 128-channel U-Net at K = 8: 1.23 times fewer operations.

    With the recipe `fast`'s steps it is twelve times fewer than in the reference's hundred.
    """
    unet = build_unet(FitConfig(images="")).eval()
    model = DiffusionModel(unet, unet_run(unet), {}, "", 32, (3, 32, 32))
    config = replace(CONFIG, positives=8)
    to_site, whole = count_flops(config, model)
    assert (to_site + whole) / (to_site / 8 + whole) == pytest.approx(1.23, abs=0.01)
    assert whole == pytest.approx(12.1e9, rel=0.02)  # 6.05 G multiply-adds at 32x32
    fast = replace(config, scheduler="dpm-sde", steps=load_recipe("fast", RECIPES)["steps"])
    assert 100 * (to_site + whole) / flops_of_positive(fast, model) == pytest.approx(12.3, abs=0.1)


def test_operations_count_calls_and_mixed_timesteps(tiny_model: Path) -> None:
    model = open_model(str(tiny_model))
    to_site, whole = count_flops(CONFIG, model)
    assert flops_of_positive(CONFIG, model) == 4 * whole + 4 * to_site / 3
    # Four steps of Heun call the denoiser seven times; half of DDIM's timesteps lie below 500.
    heun = replace(CONFIG, scheduler="heun", w=1.0)
    assert flops_of_positive(heun, model) == 7 * whole
    late = replace(CONFIG, mix_timesteps=(0, 500))
    assert flops_of_positive(late, model) == 4 * whole + 2 * to_site / 3


def test_an_estimate_is_near_a_real_run(
    tiny_model: Path, digit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 25 %: what a worker takes after it has started, and the tars' bytes.

    Both by the processor's time of this process, which others on the machine change little.
    """
    monkeypatch.setattr("clsp.generate.cost.time", SimpleNamespace(perf_counter=time.process_time))
    config = replace(CONFIG, steps=20)
    source, model = open_images(f"folder:{digit_folder}"), open_model(str(tiny_model))
    plan = make_plan(config, ModelInfo(model.sha256, model.image_size), source)
    worker = Worker(Job(plan, source.spec, str(tiny_model), open_output(str(tmp_path))), "cpu")
    ratios = []
    for _ in range(5):
        cost = estimate(config, model, source, device="cpu", workers=1, probe=0.3)
        began = time.process_time()
        receipts = [worker.make(shard) for shard in range(plan.shards)]
        ratios.append(cost.seconds * 60 / (time.process_time() - began))
        if 0.75 < ratios[-1] < 1.25:
            break
    else:
        raise AssertionError(f"estimated over real: {ratios}")
    size = sum(receipt.shard.bytes for receipt in receipts)
    assert cost.bytes * 60 == pytest.approx(size, rel=0.25)
    assert (cost.anchors, cost.shards) == (60, 3)


def test_the_dry_run_prints_and_makes_nothing(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    arguments = ["--images=digits:test", f"--model={tiny_model}", f"--out={out}", "--device=cpu"]
    flags = ["--dry-run", "--positives=2", "--steps=2", "--workers=3", "--shard-size=100"]
    result = CliRunner().invoke(main, [*arguments, *flags, "--probe=0.1"])
    assert result.exit_code == 0, result.output
    assert "359 anchors x 2 positives in 4 shards" in result.output
    assert "hours on 3 workers (cpu)" in result.output
    assert not out.exists()


def test_hours_are_shared_by_the_workers() -> None:
    cost = Cost(7200, 8, 8, 1e9, 1000.0, 2.0, 4, "cuda")
    assert cost.hours == 1.0
    assert "4 GPU-hours, at 4 positives a second each" in str(cost)
