"""Sampling: every scheduler and prediction type, against diffusers' own plain loop."""

from __future__ import annotations

import math
from typing import get_args, get_type_hints

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel

from benchmarks.common import tiny_unet
from clsp.generate.bottleneck import Denoise, find_site, list_sites
from clsp.generate.config import GenerateConfig
from clsp.generate.families import unet_run
from clsp.generate.noise import INITIAL, KeyedNoise, keyed_generator
from clsp.generate.sampler import NotFinite, make_scheduler, sample_positives

SCHEDULERS = get_args(get_type_hints(GenerateConfig)["scheduler"])
KEYS = ("a", "b", "c")


@pytest.fixture(scope="module")
def unet() -> UNet2DModel:
    return tiny_unet()


def denoiser(unet: UNet2DModel) -> Denoise:
    run = unet_run(unet)
    return lambda x, t: run(x, t, None)


def positives(
    unet: UNet2DModel, name: str = "ddim", site: str = "mid_block", **change: object
) -> torch.Tensor:
    return sample_positives(
        denoiser(unet),
        find_site(unet, site),
        make_scheduler(name, {}),
        torch.linspace(-1, 1, 3 * 192).reshape(3, 3, 8, 8),
        KeyedNoise(0, KEYS, (3, 8, 8), "cpu"),
        **{"positives": 2, "w": 0.3, "steps": 4, "eta": 0.5, **change},
    )


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", SCHEDULERS)
@torch.no_grad()
def test_with_w_1_it_is_plain_sampling(unet: UNet2DModel, name: str, prediction: str) -> None:
    """Bit for bit what a loop over diffusers' scheduler gives with the same noise."""
    scheduler = make_scheduler(name, {"prediction_type": prediction})
    noise = KeyedNoise(0, KEYS, (3, 8, 8), "cpu")
    found = sample_positives(
        denoiser(unet),
        find_site(unet, "mid_block"),
        scheduler,
        torch.zeros(3, 3, 8, 8),
        noise,
        positives=1,
        w=1.0,
        steps=6,
        eta=0.5,
    )[:, 0]
    plain = make_scheduler(name, {"prediction_type": prediction})
    plain.set_timesteps(6)
    x = noise.initial(0) * plain.init_noise_sigma
    for number, t in enumerate(plain.timesteps):
        output = unet(plain.scale_model_input(x, t), t).sample
        drawn = {
            "ddim": lambda n: {"eta": 0.5, "variance_noise": noise.step(0, n)},
            "ddpm": lambda n: {"generator": noise.generators(0, n)},
            "dpm-sde": lambda n: {"variance_noise": noise.step(0, n)},
        }.get(name, lambda n: {})
        x = plain.step(output, t, x, **drawn(number)).prev_sample
    assert torch.equal(found, x)
    assert plain.config.prediction_type == prediction


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_anchor_counts_under_every_scheduler(unet: UNet2DModel, name: str) -> None:
    mixed, free = positives(unet, name), positives(unet, name, w=1.0)
    assert mixed.isfinite().all()
    assert (mixed - free).abs().mean() > 1e-3


def exact(means: tuple[float, ...], deviation: float, prediction: str = "epsilon") -> Denoise:
    """What a model knows that was trained to the end on images of independent pixels.

    Each pixel is drawn from N(mean, deviation^2), with any of `means`.
    """
    alpha_bar, centres = DDIMScheduler().alphas_cumprod, torch.tensor(means)

    def output(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        a = alpha_bar[t.long()]
        variance = a * deviation**2 + 1 - a
        off = x[..., None] - a.sqrt() * centres  # (..., means)
        likely = (-off.square() / (2 * variance)).softmax(-1)
        eps = (1 - a).sqrt() * (likely * off).sum(-1) / variance
        x_0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
        v = a.sqrt() * eps - (1 - a).sqrt() * x_0
        return {"epsilon": eps, "sample": x_0, "v_prediction": v}[prediction]

    return output


def quantiles(p: torch.Tensor, means: tuple[float, ...], deviation: float) -> torch.Tensor:
    """The values below which a share p of such pixels lies."""
    values = torch.linspace(-1.5, 1.5, 10_001, dtype=torch.float64)
    below = sum(torch.special.ndtr((values - mean) / deviation) for mean in means) / len(means)
    return values[torch.searchsorted(below, p.double()).clamp(max=10_000)].float()


@pytest.mark.parametrize("name", ["ddpm", "dpm", "dpm-single", "dpm-sde", "unipc"])
def test_a_weak_model_of_pixels_stays_in_their_range(name: str) -> None:
    """One that finds a tenth too little noise drifts out of the range without the clip."""

    def weak(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return 0.9 * exact((0.0,), 0.5)(x, t)

    largest = {}
    for clip in (True, False):
        samples = sample_positives(
            weak,
            find_site(torch.nn.Sequential(torch.nn.Identity()), "0"),
            make_scheduler(name, {}, clip=clip),
            torch.zeros(8, 3, 8, 8),
            KeyedNoise(0, tuple("abcdefgh"), (3, 8, 8), "cpu"),
            positives=1,
            w=1.0,
            steps=20,
        )
        largest[clip] = float(samples.abs().max())
    assert largest[True] <= 1.05
    assert largest[False] > 1.3


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    ("name", "measured"),  # the mean error in 10 and in 100 steps
    [
        ("ddim", (0.1017, 0.0085)),
        ("dpm", (0.0856, 0.0068)),
        ("dpm-single", (0.0996, 0.0095)),
        ("unipc", (0.0832, 0.0061)),
        ("euler", (0.1017, 0.0085)),
        ("heun", (0.0548, 0.0059)),
        ("ddpm", (0.1213, 0.0197)),
        ("dpm-sde", (0.0959, 0.0099)),
    ],
)
def test_few_steps_converge_to_the_exact_result(
    name: str, prediction: str, measured: tuple[float, float]
) -> None:
    """Pixels are black or white, about; in one dimension the exact flow keeps each one's rank.

    A stochastic solver does not follow the flow, so its samples are compared in order.
    """
    means, deviation, rows = (-0.5, 0.5), 0.1, 8
    noise = KeyedNoise(0, tuple(map(str, range(rows))), (3, 8, 8), "cpu")
    error = []
    for steps in (10, 100):
        found = sample_positives(
            exact(means, deviation, prediction),
            find_site(torch.nn.Sequential(torch.nn.Identity()), "0"),
            make_scheduler(name, {"prediction_type": prediction}),
            torch.zeros(rows, 3, 8, 8),
            noise,
            positives=1,
            w=1.0,
            steps=steps,
        )[:, 0]
        ranks = torch.special.ndtr(noise.initial(0))
        if name in ("ddpm", "dpm-sde"):
            found = found.flatten().sort().values
            ranks = (torch.arange(len(found)) + 0.5) / len(found)
        error.append(float((found - quantiles(ranks, means, deviation)).abs().mean()))
    assert error == pytest.approx(measured, rel=0.1)


def test_a_w_for_each_positive_is_that_of_its_row(unet: UNet2DModel) -> None:
    shares = torch.tensor([[0.1, 0.9], [0.5, 0.5], [0.9, 0.1]])
    found = positives(unet, w=shares)
    for row in range(3):
        for j in range(2):
            alone = positives(unet, w=float(shares[row, j]))
            torch.testing.assert_close(found[row, j], alone[row, j])


def test_mixing_can_be_limited_to_a_range_of_timesteps(unet: UNet2DModel) -> None:
    everywhere, nowhere = positives(unet), positives(unet, w=1.0)
    # The timesteps of four steps are 999, 749, 499, 249.
    assert torch.equal(positives(unet, mix_timesteps=(249, 999)), everywhere)
    assert torch.equal(positives(unet, mix_timesteps=(250, 400)), nowhere)
    late = positives(unet, mix_timesteps=(0, 500))
    assert not torch.equal(late, everywhere)
    assert not torch.equal(late, nowhere)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 3, 5), (3, 8, 8)])
def test_each_row_of_noise_is_its_own_generators(shape: tuple[int, ...]) -> None:
    noise = KeyedNoise(7, KEYS, shape, "cpu")
    for found, positive, step in (
        (noise.initial(2), 2, INITIAL),
        (noise.anchor(5), None, 5),
        (noise.step(1, 3), 1, 3),
    ):
        rows = [keyed_generator(7, key, positive, step) for key in KEYS]
        assert torch.equal(found, torch.stack([torch.randn(shape, generator=g) for g in rows]))


def test_what_is_not_finite_is_found_with_its_step(unet: UNet2DModel) -> None:
    plain, calls = denoiser(unet), 0

    def breaks(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        output = plain(x, t)
        if calls > 4:  # two positives a step, so in the third
            output[1] = math.nan
        return output

    with pytest.raises(NotFinite) as caught:
        sample_positives(
            breaks,
            find_site(unet, "mid_block"),
            make_scheduler("ddim", {}),
            torch.zeros(3, 3, 8, 8),
            KeyedNoise(0, KEYS, (3, 8, 8), "cpu"),
            positives=2,
            w=1.0,
            steps=4,
        )
    assert (caught.value.rows, caught.value.positive, caught.value.step) == ([1], 0, 2)


@torch.no_grad()
def test_sites_are_listed_as_they_run(unet: UNet2DModel) -> None:
    sites = list_sites(denoiser(unet), unet, torch.zeros(2, 3, 8, 8), torch.tensor(5))
    assert sites["mid_block"] == (16, 4, 4)
    assert sites["up_blocks.1"] == (8, 8, 8)
    assert "down_blocks.0" not in sites  # gives its skips too
    assert list(sites).index("mid_block") < list(sites).index("up_blocks.0")
    for path in sites:  # all of them can be mixed
        assert positives(unet, site=path, steps=1).isfinite().all()


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("mid_blok", "no module 'mid_blok'; the nearest are mid_block"),
        ("down_blocks.0", "gives tuple, expected one tensor"),
        ("mid_block.resnets.0.nonlinearity", "runs more than once"),
    ],
)
def test_a_site_that_cannot_be_mixed_is_refused(unet: UNet2DModel, site: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        positives(unet, site=site)


def test_noise_levels_a_scheduler_cannot_have_are_refused() -> None:
    config = {"rescale_betas_zero_snr": True}
    assert make_scheduler("ddim", config).alphas_cumprod[-1] < 1e-6
    with pytest.raises(ValueError, match="heun cannot start from pure noise"):
        make_scheduler("heun", config)
    with pytest.raises(ValueError, match="'ddmp' is none of ddim, ddpm"):
        make_scheduler("ddmp", {})
