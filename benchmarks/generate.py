r"""How much faster positives are made than by a plain composition of the method: ratios in one run.

The baseline is float32, encodes the anchor again for every positive and step, runs the two passes
one after the other, and encodes and saves images while the denoiser waits.

    python -m benchmarks.generate
    python -m benchmarks.generate --device cuda --batch 256 --steps 5 --peak-tflops 989 \
        --variants baseline,float32,bfloat16,compiled,graphs,fast --out-name generate-gpu
    python -m benchmarks.generate --device cuda --size 256 --batch 32 --steps 5 --peak-tflops 989 \
        --variants baseline,bfloat16,compiled,graphs,fast --out-name generate-gpu-256

What runs in one thread of a CPU is what one worker of many does.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from diffusers import UNet2DModel, VQModel

from clsp.generate.__main__ import RECIPES
from clsp.generate.bottleneck import denoise_with, encode_to_site, find_site
from clsp.generate.compiled import compile_blocks
from clsp.generate.config import FitConfig, GenerateConfig
from clsp.generate.cost import flops_of_positive
from clsp.generate.ddpm import build_unet, noise_schedule
from clsp.generate.denoiser import DiffusionModel
from clsp.generate.families import unet_run
from clsp.generate.records import BatchSampler, make_records
from clsp.generate.sampler import make_scheduler
from clsp.recipes import load_recipe
from clsp.shards.images import ImageSource, encode_image, load_pixels, open_images
from clsp.shards.writer import write_shard

from .common import alternate, report

FAST = load_recipe("fast", RECIPES)
REFERENCE_STEPS = 100


def make_model(size: int, channels: int, device: str, config: GenerateConfig) -> DiffusionModel:
    """Return an untrained model, whose time does not depend on its weights.

    size: 32 is the reference's CIFAR U-Net; 256 is a latent diffusion model of the shape of
    CompVis/ldm-celebahq-256, which denoises 64x64 latents.
    """
    torch.manual_seed(0)
    schedule = dict(noise_schedule(FitConfig(images="")).config)
    if size == 32:
        unet = build_unet(FitConfig(images="", channels=channels))
        model = DiffusionModel(unet, unet_run(unet), schedule, "", 32, (3, 32, 32))
    else:
        unet = UNet2DModel(
            sample_size=64,
            block_out_channels=(224, 448, 672, 896),
            attention_head_dim=32,
            down_block_types=("DownBlock2D", *["AttnDownBlock2D"] * 3),
            up_block_types=(*["AttnUpBlock2D"] * 3, "UpBlock2D"),
        )
        coder = VQModel(
            block_out_channels=(128, 256, 512),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=2,
            num_vq_embeddings=8192,
        )
        shape = (3, 64, 64)
        model = DiffusionModel(unet, unet_run(unet), schedule, "", 256, shape, autoencoder=coder)
    model.to(device, getattr(torch, config.dtype), channels_last=config.channels_last)
    return model


@torch.no_grad()
def baseline(
    config: GenerateConfig, model: DiffusionModel, source: ImageSource, anchors: range, out: Path
) -> None:
    """Make and save the positives of `anchors`, one positive number after the other."""
    device = next(model.network.parameters()).device
    site, denoise = find_site(model.network, config.site), model.denoiser()
    pixels = torch.from_numpy(load_pixels(source, list(anchors), size=model.image_size))
    latents = model.encode(pixels.permute(0, 3, 1, 2).to(device).float() / 127.5 - 1)
    for j in range(config.positives):
        scheduler = make_scheduler(config.scheduler, model.scheduler_config)
        scheduler.set_timesteps(config.steps)
        x = torch.randn(latents.shape, device=device)
        for t in scheduler.timesteps:
            t = t.to(device)
            noised = scheduler.add_noise(latents, torch.randn_like(latents), t.expand(len(latents)))
            feature = encode_to_site(denoise, site, noised, t)
            output = denoise_with(denoise, site, x, t, config.w, feature)
            x = scheduler.step(output, t, x, eta=config.eta).prev_sample
        levels = ((model.decode(x).clamp(-1, 1) + 1) * 127.5).round().byte()
        images: np.ndarray = levels.permute(0, 2, 3, 1).cpu().numpy()
        for index, image in zip(anchors, images, strict=True):
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


def settings(plain: GenerateConfig, dtype: str) -> dict[str, GenerateConfig]:
    """Return the configuration of each variant, all of as many steps.

    dtype: the faster one on this device, for `compiled`, `graphs` and `fast`.
    """
    last = replace(plain, channels_last=True)
    return {
        "baseline": plain,
        "float32": plain,
        "channels-last": last,
        "bfloat16": replace(last, dtype="bfloat16"),
        "compiled": replace(last, dtype=dtype),
        "graphs": replace(last, dtype=dtype),
        "fast": replace(last, dtype=dtype, scheduler=FAST["scheduler"], w=FAST["w"]),
    }


def ratios(seconds: dict[str, float]) -> dict[str, float]:
    """Return how many times faster than the baseline each variant is, at equal steps.

    "fast_end_to_end": at its own steps, against a baseline of 100; calls of the denoiser, which is
    what takes time, are proportional to steps, so both are scaled.
    """
    found = {name: seconds["baseline"] / s for name, s in seconds.items() if name != "baseline"}
    if "fast" in found:
        found["fast_end_to_end"] = found["fast"] * REFERENCE_STEPS / FAST["steps"]
    return found


@click.command()
@click.option("--device", default="cpu", show_default=True)
@click.option("--size", type=click.Choice(["32", "256"]), default="32", show_default=True)
@click.option("--channels", default=128, show_default=True, help="Of a 32x32 U-Net's first level.")
@click.option("--positives", default=8, show_default=True)
@click.option("--steps", default=2, show_default=True, help="Of all variants.")
@click.option("--batch", default=4, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--variants", default="baseline,float32,channels-last,fast", show_default=True)
@click.option("--images", default="digits", show_default=True, help="Resized to the model's size.")
@click.option("--peak-tflops", type=float, help="Of the device, to print the share in use (MFU).")
@click.option("--out-name", default="generate", show_default=True)
def main(
    device: str,
    size: str,
    channels: int,
    positives: int,
    steps: int,
    batch: int,
    rounds: int,
    variants: str,
    images: str,
    peak_tflops: float | None,
    out_name: str,
) -> None:
    """Time the baseline and our variants in turn; on a GPU the last three in bfloat16."""
    if device == "cpu":
        torch.set_num_threads(1)
    source, anchors = open_images(images), range(batch)
    plain = GenerateConfig(positives=positives, steps=steps, batch=batch, site="mid_block")
    chosen = settings(plain, "float32" if device == "cpu" else FAST["dtype"])
    chosen = {name: chosen[name] for name in dict.fromkeys(["baseline", *variants.split(",")])}
    models = {name: make_model(int(size), channels, device, c) for name, c in chosen.items()}
    flops = flops_of_positive(plain, models["baseline"])
    for name, mode in (("compiled", "default"), ("graphs", "reduce-overhead")):
        if name in models:
            compile_blocks(models[name].network, plain.site, torch.device(device), mode)

    def task(name: str, folder: Path) -> Callable[[], None]:
        make, numbers = baseline if name == "baseline" else ours, itertools.count()

        def run() -> None:
            out = folder / f"{name}-{next(numbers)}"
            out.mkdir()
            make(chosen[name], models[name], source, anchors, out)
            if device.startswith("cuda"):
                torch.cuda.synchronize()

        return run

    with tempfile.TemporaryDirectory() as folder:
        seconds = alternate({name: task(name, Path(folder)) for name in chosen}, rounds)
    last = list(chosen)[-1]
    rates = {name: batch * positives / s for name, s in seconds.items()}
    values: dict[str, Any] = {
        "positives_per_second": rates,
        "times_faster_than_baseline": ratios(seconds),
        "tflops": {name: rate * flops / 1e12 for name, rate in rates.items() if name != "baseline"},
        "network_share_of_wall_time": share_of_network(chosen[last], models[last], source),
    }
    if peak_tflops:
        values["mfu"] = {name: rate / peak_tflops for name, rate in values["tflops"].items()}
    report(out_name, values)


if __name__ == "__main__":
    main()
