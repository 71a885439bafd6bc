"""`clsp features`: a diffusion model's own features of images, kept for whoever measures them."""

from __future__ import annotations

from pathlib import Path

import click
import torch
from safetensors.torch import save
from torch import Tensor

from ..recipes import progress
from ..shards.files import write_atomic
from ..shards.images import ImageSource, load_pixels, open_images
from .bottleneck import encode_to_site, find_site
from .config import image_size_option
from .denoiser import DiffusionModel
from .diffusion import open_model
from .noise import KeyedNoise
from .sampler import make_scheduler

_BATCH = 64


@torch.no_grad()
def bottleneck_features(
    model: DiffusionModel,
    source: ImageSource,
    *,
    timestep: int = 50,
    site: str | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Tensor:
    """Return the site's output for each noised image, averaged over space: (N, C) float32.

    timestep: how far the images are noised, of those that the model was trained on; 0 is least.
    site: by default the model's middle block. Raises ValueError for a model that wants labels.

    Baranchuk et al., 2022, arXiv:2112.03126.
    """
    if model.label_rows:
        raise ValueError("the model takes class labels, which would be in the features")
    place = find_site(model.network, site or model.site)
    scheduler = make_scheduler("ddim", model.scheduler_config)
    last = int(scheduler.config.num_train_timesteps) - 1
    if not 0 <= timestep <= last:
        raise ValueError(f"timestep is {timestep}, the model knows 0 to {last}")
    t = torch.tensor(timestep, device=device)
    parts = []
    with progress(len(source), "features", "image") as bar:
        for start in range(0, len(source), _BATCH):
            rows = range(start, min(start + _BATCH, len(source)))
            pixels = torch.from_numpy(load_pixels(source, rows, model.image_size))
            images = pixels.permute(0, 3, 1, 2).to(device).float() / 127.5 - 1
            noise = KeyedNoise(seed, [source.key(row) for row in rows], model.shape, device)
            noised = scheduler.add_noise(
                model.encode(images), noise.anchor(timestep), t.expand(len(images))
            )
            feature = encode_to_site(model.denoiser(), place, noised, t).float()
            # A U-Net's is (B, C, H, W), a transformer's (B, tokens, C).
            parts.append(feature.mean(dim=(2, 3) if feature.ndim == 4 else 1).cpu())
            bar.update(len(rows))
    return torch.cat(parts)


@click.command()
@click.option("--images", required=True, help="Image source, as for `clsp generate`.")
@click.option("--model", "spec", required=True, help="Diffusion model, as for `clsp generate`.")
@image_size_option
@click.option("--download", is_flag=True, help="Fetch the image data set if it is not there.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A .safetensors file.")
@click.option("--timestep", default=50, show_default=True, help="How far images are noised.")
@click.option("--site", help="Module whose output is kept; by default the middle block.")
@click.option("--seed", default=0, show_default=True, help="Seed of the noise.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
def main(
    images: str,
    spec: str,
    image_size: int,
    download: bool,
    out: Path,
    timestep: int,
    site: str | None,
    seed: int,
    device: str,
) -> None:
    """Keep a diffusion model's bottleneck features of images, one row an image.

    `clsp evaluate representation --also NAME=OUT` lays them out beside an encoder's.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = bottleneck_features(
            open_model(spec, device, image_size=image_size),
            open_images(images, download=download),
            timestep=timestep,
            site=site,
            seed=seed,
            device=device,
        )
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, save({"features": found.contiguous()}))
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{out}: {len(found):,} features of {found.shape[1]}")


if __name__ == "__main__":
    main()
