"""How much faster positives are made than by a plain composition of the method: ratios in one run.

The baseline is float32, encodes the anchor again for every positive and step, runs the two passes
one after the other, and encodes and saves images while the denoiser waits.

    python -m benchmarks.generate --out-name generate-cpu
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch

from clsp.generate.bottleneck import denoise_with, encode_to_site, find_site
from clsp.generate.config import FitConfig, GenerateConfig
from clsp.generate.ddpm import build_unet, noise_schedule
from clsp.generate.denoiser import DiffusionModel
from clsp.generate.families import unet_run
from clsp.generate.records import BatchSampler, make_records
from clsp.generate.sampler import make_scheduler
from clsp.shards.images import ImageSource, encode_image, fit_square, open_images
from clsp.shards.writer import write_shard

from .common import alternate, report


def make_model(channels: int, device: str, config: GenerateConfig) -> DiffusionModel:
    """Return the reference's CIFAR U-Net, untrained: its time does not depend on its weights."""
    torch.manual_seed(0)
    fit = FitConfig(images="", channels=channels)
    unet = build_unet(fit)
    schedule = dict(noise_schedule(fit).config)
    model = DiffusionModel(unet, unet_run(unet), schedule, "", 32, (3, 32, 32))
    model.to(device, getattr(torch, config.dtype), channels_last=config.channels_last)
    return model


@torch.no_grad()
def baseline(
    config: GenerateConfig, model: DiffusionModel, source: ImageSource, anchors: range, out: Path
) -> None:
    """Make and save the positives of `anchors`, one positive number after the other."""
    device = next(model.network.parameters()).device
    site, denoise = find_site(model.network, config.site), model.denoiser()
    pixels = np.stack([np.asarray(fit_square(source.read(i), 32)) for i in anchors])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device).float() / 127.5 - 1
    for j in range(config.positives):
        scheduler = make_scheduler(config.scheduler, model.scheduler_config)
        scheduler.set_timesteps(config.steps)
        x = torch.randn(images.shape, device=device)
        for t in scheduler.timesteps:
            t = t.to(device)
            noised = scheduler.add_noise(images, torch.randn_like(images), t.expand(len(images)))
            feature = encode_to_site(denoise, site, noised, t)
            output = denoise_with(denoise, site, x, t, config.w, feature)
            x = scheduler.step(output, t, x, eta=config.eta).prev_sample
        levels = ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        for index, image in zip(anchors, levels, strict=True):
            (out / f"{source.key(index)}.p{j}.png").write_bytes(encode_image(image, "png"))


def ours(
    config: GenerateConfig, model: DiffusionModel, source: ImageSource, anchors: range, out: Path
) -> None:
    """Make one shard of `anchors`, as a worker does."""
    device = next(model.network.parameters()).device
    records = make_records(BatchSampler(config, model, device, "U-Net"), source, anchors)
    (out / "data").mkdir()
    write_shard(out / "data" / "train-00000.tar", records, config.positives)


def share_of_network(config: GenerateConfig, model: DiffusionModel, source: ImageSource) -> float:
    """Return the denoiser's part of the wall time of making one shard of two batches."""
    inside, device = 0.0, next(model.network.parameters()).device

    def timed(run: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def call(*arguments: torch.Tensor) -> torch.Tensor:
            nonlocal inside
            began = time.perf_counter()
            try:  # a pass that ends at the site ends by an exception
                return run(*arguments)
            finally:
                if device.type == "cuda":
                    torch.cuda.synchronize()
                inside += time.perf_counter() - began

        return call

    watched = replace(model, run=timed(model.run))
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        ours(config, watched, source, range(2 * config.batch), Path(folder))
        return inside / (time.perf_counter() - began)


@click.command()
@click.option("--device", default="cpu", show_default=True)
@click.option("--channels", default=128, show_default=True, help="Of the U-Net's first level.")
@click.option("--positives", default=8, show_default=True)
@click.option("--steps", default=2, show_default=True, help="Of both, where steps are equal.")
@click.option("--batch", default=4, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--images", default="digits", show_default=True, help="Resized to 32x32.")
@click.option("--out-name", default="generate", show_default=True)
def main(
    device: str,
    channels: int,
    positives: int,
    steps: int,
    batch: int,
    rounds: int,
    images: str,
    out_name: str,
) -> None:
    """Time baseline, ours, ours in bfloat16, and `fast` against 100 steps, in turn."""
    if device == "cpu":
        torch.set_num_threads(1)
    source, anchors = open_images(images), range(batch)
    plain = GenerateConfig(positives=positives, steps=steps, batch=batch, site="mid_block")
    short = replace(plain, dtype="bfloat16", channels_last=True)
    # A fifth of the reference's 100 steps is `fast`; the ratio of their steps is exact.
    variants = {
        "baseline": (baseline, plain),
        "float32": (ours, plain),
        "bfloat16": (ours, short),
        "fast": (ours, replace(short, scheduler="dpm-sde")),
    }
    models = {name: make_model(channels, device, config) for name, (_, config) in variants.items()}

    def task(name: str, folder: Path) -> Callable[[], None]:
        make, config = variants[name]
        numbers = itertools.count()

        def run() -> None:
            out = folder / f"{name}-{next(numbers)}"
            out.mkdir()
            make(config, models[name], source, anchors, out)
            if device.startswith("cuda"):
                torch.cuda.synchronize()

        return run

    with tempfile.TemporaryDirectory() as folder:
        seconds = alternate({name: task(name, Path(folder)) for name in variants}, rounds)
    share = share_of_network(plain, models["float32"], source)
    report(
        out_name,
        {
            "positives_per_second": {n: batch * positives / s for n, s in seconds.items()},
            "speedup_float32": seconds["baseline"] / seconds["float32"],
            "speedup_bfloat16_channels_last": seconds["baseline"] / seconds["bfloat16"],
            "speedup_fast_20_steps_against_baseline_100": 5 * seconds["baseline"] / seconds["fast"],
            "network_share_of_wall_time": share,
        },
    )


if __name__ == "__main__":
    main()
