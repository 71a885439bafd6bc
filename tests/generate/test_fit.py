"""`clsp fit`: what it trains is a plain diffusers pipeline, and a kill does not change it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from PIL import Image
from safetensors.torch import load_file

from clsp.generate.config import FitConfig, GenerateConfig, fit_learning_rate
from clsp.generate.ddpm import build_unet, denoising_loss
from clsp.generate.diffusion import open_model
from clsp.generate.fit import draw_batch, draw_labels, fit
from clsp.generate.run import generate
from clsp.shards.store import open_set

TINY = FitConfig(
    images="digits:test",
    image_size=8,
    channels=8,
    channel_mult=(1, 2),
    attention=(),
    mid_attention=False,
    blocks=1,
    groups=4,
    dropout=0.1,
    steps=40,
    batch=16,
    lr=2e-3,
    warmup=5,
    ema=0.9,
    save_every=10,
    sample_every=20,
    sample_steps=4,
)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(TINY, tmp_path_factory.mktemp("fit") / "model")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def test_the_model_opens_in_diffusers_and_samples(fitted: Path) -> None:
    pipeline = DDPMPipeline.from_pretrained(fitted)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(batch_size=2, num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 8, 8, 3)
    assert pipeline.scheduler.config.num_train_timesteps == 1000


def test_it_learns_and_draws_samples_on_the_way(fitted: Path) -> None:
    longer = fit(replace(TINY, steps=400), fitted.parent / "longer")
    rows = [json.loads(line) for line in (longer / "fit" / "metrics.jsonl").open()]
    assert [row["step"] for row in rows] == [100, 200, 300, 400]
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    grids = sorted((fitted / "fit" / "samples").iterdir())
    assert [grid.name for grid in grids] == ["step-0000020.png", "step-0000040.png"]
    assert Image.open(grids[0]).size == (384, 384)  # 8 x 8 samples, 6 times their 8 pixels


def test_a_killed_run_goes_on_exactly(fitted: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    flags = [
        f"--{name.replace('_', '-')}={','.join(map(str, v)) if isinstance(v, tuple) else v}"
        for name, v in vars(TINY).items()
        if not isinstance(v, bool)
    ]
    command = [sys.executable, "-m", "clsp.generate.fit", f"--out={out}", "--no-mid-attention"]
    checkpoint = out / "fit" / "checkpoint.safetensors"
    for kill in range(2):
        job = subprocess.Popen([*command, *flags])
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        while not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before:
            assert job.poll() is None, f"ended with {job.returncode} before kill {kill}"
            time.sleep(0.002)
        job.send_signal(signal.SIGKILL)
        job.wait()
    subprocess.run([*command, *flags], check=True, timeout=300)
    expected, found = weights(fitted), weights(out)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_another_config_is_refused(fitted: Path) -> None:
    with pytest.raises(ValueError, match=r"made with lr = 0\.002, not 0\.1"):
        fit(replace(TINY, lr=0.1), fitted)


def test_a_batch_is_a_pure_function() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), dtype=np.uint8)
    rows = np.array([4, 40, 7])
    images, noise, t = draw_batch(pixels, rows, TINY, step=7, rank=0)
    assert all(map(torch.equal, (images, noise, t), draw_batch(pixels, rows, TINY, 7, 0)))
    for step, rank in ((8, 0), (7, 1)):
        assert not torch.equal(noise, draw_batch(pixels, rows, TINY, step, rank)[1])
    plain = draw_batch(pixels, rows, replace(TINY, flip=False), 7, 0)[0]
    expected = torch.from_numpy(pixels[rows]).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(plain, expected)


def test_the_reference_setting_has_the_papers_size() -> None:
    """35.7 million parameters, as the DDPM paper counts for its CIFAR-10 model."""
    count = sum(p.numel() for p in build_unet(FitConfig(images="")).parameters())
    assert count == pytest.approx(35.7e6, rel=0.01)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"image_size": 30}, "image_size 30 must be a multiple of 8"),
        ({"attention": (4,)}, "attention levels"),
        ({"groups": 48}, "groups 48 does not divide"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_a_config_out_of_range_is_refused(setting: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FitConfig(images="digits", **setting)


def test_the_rate_warms_up_and_decays() -> None:
    config = replace(TINY, steps=100, warmup=10, lr=1.0)
    assert [fit_learning_rate(config, step) for step in (0, 9, 50, 99)] == [0.1, 1, 1, 1]
    decaying = replace(config, lr_decay=True)
    rates = [fit_learning_rate(decaying, step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert rates[55] == pytest.approx(0.5)
    assert sorted(rates[10:], reverse=True) == rates[10:]
    assert 0 < rates[-1] < 0.001


def test_min_snr_weights_equal_a_slow_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    eps, noise = torch.randn((2, 6, 3, 4, 4), generator=generator)
    alpha_bar = torch.tensor([0.999, 0.95, 0.9, 0.5, 0.1, 0.001])
    expected = 0.0
    for image in range(6):
        snr = float(alpha_bar[image] / (1 - alpha_bar[image]))
        error = sum((eps[image] - noise[image]).flatten().tolist()[i] ** 2 for i in range(48)) / 48
        expected += error * min(snr, 5.0) / snr / 6
    assert float(denoising_loss(eps, noise, alpha_bar, 5.0)) == pytest.approx(expected, rel=1e-5)
    plain = torch.nn.functional.mse_loss(eps, noise)
    assert float(denoising_loss(eps, noise, alpha_bar)) == pytest.approx(float(plain), rel=1e-6)


def test_a_compiled_fit_saves_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Traced but not compiled: a compiler is no part of the promise, and takes a minute.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    config = replace(TINY, steps=3, sample_every=3, dropout=0.0)
    plain, compiled = fit(config, tmp_path / "a"), fit(config, tmp_path / "b", compile_unet=True)
    one, other = weights(plain), weights(compiled)
    assert set(one) == set(other)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, atol=1e-5, rtol=1e-4)


def test_a_model_with_labels_is_one_that_generate_can_guide(tmp_path: Path) -> None:
    model = fit(replace(TINY, labels=True, steps=60), tmp_path / "model")
    opened = open_model(str(model))
    assert opened.label_rows == 11  # ten digits and the label that stands for none
    opened.check_labels(10, guidance=1.8)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor(500)
    of = [opened.denoiser(torch.full((2,), label))(x, t) for label in (3, 7, 10)]
    assert not torch.allclose(of[0], of[1])
    assert not torch.allclose(of[0], of[2])
    sampling = GenerateConfig(positives=1, steps=2, guidance=1.8, shard_size=400)
    generate(sampling, "digits:test", str(model), tmp_path / "set", device="cpu", workers=1)
    assert open_set(tmp_path / "set").manifest.plan["config"]["guidance"] == 1.8


def test_labels_are_hidden_at_the_given_rate() -> None:
    labels, rows = np.arange(1000) % 10, np.arange(1000)
    config = replace(TINY, labels=True, label_dropout=0.3)
    drawn = draw_labels(labels, rows, 10, config, step=5, rank=0).numpy()
    assert 0.25 < (drawn == 10).mean() < 0.35
    assert (drawn[drawn < 10] == labels[drawn < 10]).all()
    again = draw_labels(labels, rows, 10, config, step=6, rank=0).numpy()
    assert (drawn != again).any()


def test_labels_of_images_that_have_none_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="they have no class labels"):
        fit(replace(TINY, images=f"folder:{tmp_path}", labels=True), tmp_path / "model")
