"""Train a DDPM on an image source, with or without labels, when there is no model for it yet.

OUT becomes a plain diffusers pipeline folder, which `DDPMPipeline.from_pretrained` and
`clsp generate --model` open. Everything about the run itself is in OUT/fit/: the config, one
checkpoint, the losses, and grids of samples drawn while it trains.

Ho et al., 2020, arXiv:2006.11239.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..recipes import (
    announce,
    build_config,
    config_options,
    progress,
    recipe_option,
    say_result,
)
from ..shards.files import write_atomic
from .config import FitConfig, fit_learning_rate

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

RECIPES = Path(__file__).parent / "recipes"
_LOG_EVERY = 100  # steps


def draw_batch(
    pixels: np.ndarray, rows: np.ndarray, config: FitConfig, step: int, rank: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return images and noise, both (b, 3, S, S) in [-1, 1], and t (b,) of one step on one rank.

    pixels: (N, S, S, 3) uint8; rows: (b,) which of them. A pure function of its arguments, so a
    resumed run goes on exactly.
    """
    import torch

    images = torch.from_numpy(pixels[rows]).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    generator = torch.Generator().manual_seed(_step_seed(config, step, rank))
    if config.flip:
        mirrored = torch.rand(len(rows), generator=generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    noise = torch.randn(images.shape, generator=generator)
    t = torch.randint(config.timesteps, (len(rows),), generator=generator)
    return images, noise, t


def draw_labels(
    labels: np.ndarray, rows: np.ndarray, classes: int, config: FitConfig, step: int, rank: int
) -> Tensor:
    """Return the labels (b,) of one step on one rank, some of them hidden, as `classes`.

    Hiding them teaches the model what it predicts without one, which guidance needs.

    Ho and Salimans, 2022, arXiv:2207.12598.
    """
    import torch

    # Another stream than the batch's images, noise and timesteps.
    generator = torch.Generator().manual_seed(_step_seed(config, step, rank) ^ (1 << 62))
    hidden = torch.rand(len(rows), generator=generator) < config.label_dropout
    return torch.where(hidden, classes, torch.from_numpy(labels[rows]))


def _step_seed(config: FitConfig, step: int, rank: int) -> int:
    return (config.seed << 40) + (step << 16) + rank


def fit(
    config: FitConfig, out: Path, *, download: bool = False, compile_unet: bool = False
) -> Path:
    """Train the model of `config` into the folder `out` and return it; goes on where it stopped.

    compile_unet: let torch.compile speed up the steps, after a minute or two.
    Runs on whatever Accelerate finds: one device, or each rank of `accelerate launch`.
    Raises ValueError for images that cannot be used, or lack the labels that are wanted, and for an
    `out` that holds another config's run.
    """
    import torch
    from accelerate import Accelerator
    from diffusers.training_utils import EMAModel

    from ..shards.images import encode_image, load_pixels, open_images
    from ..shards.order import batch_indices, check_batch, epoch_order, steps_per_epoch
    from .ddpm import build_unet, denoising_loss, noise_schedule, sample_grid, save_pipeline
    from .fit_state import load_state, save_state

    accelerator = Accelerator()
    device, main = accelerator.device, accelerator.is_main_process
    rank, world = accelerator.process_index, accelerator.num_processes
    run = out / "fit"
    (run / "samples").mkdir(parents=True, exist_ok=True)
    source = open_images(config.images, download=download)
    if config.labels and (source.labels is None or not source.classes):
        raise ValueError(f"images {config.images}: they have no class labels, which labels wants")
    classes = len(source.classes) if config.labels and source.classes else 0
    pixels = load_pixels(source, size=config.image_size)
    check_batch(len(pixels), config.batch, world)

    torch.manual_seed(config.seed)
    unet = build_unet(config, classes)
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    unet.to(device, memory_format=layout)
    average = EMAModel(unet.parameters(), decay=config.ema, foreach=True)
    optimizer = torch.optim.Adam(unet.parameters(), lr=config.lr)
    start = load_state(run / "checkpoint.safetensors", config, unet, average, optimizer)
    if main:
        announce(config, run / "config.json")
    noising = noise_schedule(config)
    alpha_bar = noising.alphas_cumprod.to(device)
    model, optimizer = accelerator.prepare(unet, optimizer)
    if compile_unet:
        model = torch.compile(model)
    per_epoch = steps_per_epoch(len(pixels), config.batch)
    order = epoch_order(config.seed, start // per_epoch, (len(pixels),))

    def draw_samples(step: int) -> None:
        average.store(unet.parameters())
        average.copy_to(unet.parameters())
        png = encode_image(sample_grid(unet.eval(), config, device), "png")
        write_atomic(run / "samples" / f"step-{step:07d}.png", png)
        unet.train()
        average.restore(unet.parameters())

    bar = progress(config.steps, "fit", "step", initial=start, show=main)
    losses: list[Tensor] = []
    began = time.monotonic()
    for step in range(start, config.steps):
        epoch, position = divmod(step, per_epoch)
        if position == 0:
            order = epoch_order(config.seed, epoch, (len(pixels),))
        rows = batch_indices(order, position, config.batch, rank, world)
        images, noise, t = (
            part.to(device) for part in draw_batch(pixels, rows, config, step, rank)
        )
        # Dropout is the only draw from the global generator.
        torch.manual_seed(_step_seed(config, step, rank))
        for group in optimizer.param_groups:
            group["lr"] = fit_learning_rate(config, step)
        noisy = noising.add_noise(images, noise, t).contiguous(memory_format=layout)
        labels = None
        if classes and source.labels is not None:
            labels = draw_labels(source.labels, rows, classes, config, step, rank).to(device)
        eps = model(noisy, t, labels).sample
        loss = denoising_loss(eps, noise, alpha_bar[t], config.min_snr)
        optimizer.zero_grad()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        average.step(unet.parameters())
        losses.append(loss.detach())
        done = step + 1
        bar.update()
        if not main:
            continue
        if done % _LOG_EVERY == 0:
            row = {"step": done, "loss": round(float(torch.stack(losses).mean()), 6)}
            bar.set_postfix(loss=row["loss"])
            with open(run / "metrics.jsonl", "a") as file:
                file.write(json.dumps({**row, "seconds": time.monotonic() - began}) + "\n")
            losses.clear()
        if done % config.save_every == 0 or done == config.steps:
            save_state(run / "checkpoint.safetensors", config, done, unet, average, optimizer)
        if done % config.sample_every == 0 or done == config.steps:
            draw_samples(done)
    bar.close()
    if main:
        average.copy_to(unet.parameters())
        save_pipeline(unet.eval(), config, out)
    accelerator.wait_for_everyone()
    return out


@click.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Output folder.")
@click.option("--download", is_flag=True, help="Fetch the data set if it is not there.")
@click.option("--compile", "compile_unet", is_flag=True, help="Use torch.compile.")
@recipe_option(RECIPES)
@config_options(FitConfig)
def main(out: Path, download: bool, compile_unet: bool, **options: Any) -> None:
    """Train an unconditional diffusion model on an image source.

    Stopped at any moment, the same command goes on from the last checkpoint.
    """
    config = build_config(FitConfig, options)
    try:
        say_result(fit(config, out, download=download, compile_unet=compile_unet))
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
