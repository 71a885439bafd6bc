"""`clsp generate`: images and a diffusion model in, a shard set out."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..recipes import announce, build_config, config_options, progress, recipe_option
from .config import GenerateConfig

if TYPE_CHECKING:
    from tqdm import tqdm

    from .job import Job

RECIPES = Path(__file__).parent / "recipes"


@click.command()
@click.option("--images", required=True, help="Image source, e.g. digits or folder:PATH.")
@click.option("--model", required=True, help="Diffusers folder or hub id, or a reference .pt file.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The set's folder.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes; default: GPUs or cores.")
@click.option("--download", is_flag=True, help="Fetch the image data set if it is not there.")
@recipe_option(RECIPES)
@config_options(GenerateConfig)
def main(
    images: str,
    model: str,
    out: Path,
    device: str,
    workers: int | None,
    download: bool,
    **options: Any,
) -> None:
    """Sample K positives for every image and write them as a shard set.

    Stopped or killed at any moment, the same command goes on; the set does not depend on the
    number of workers, nor on how often they died.
    """
    config = build_config(GenerateConfig, options)
    try:
        generate(config, images, model, out, device=device, workers=workers, download=download)
    except (ValueError, OSError, RuntimeError) as error:
        raise click.ClickException(str(error)) from error


def generate(
    config: GenerateConfig,
    images: str,
    model: str,
    out: Path,
    *,
    device: str = "auto",
    workers: int | None = None,
    download: bool = False,
) -> None:
    """Make the shard set of `config` in the folder `out`, or what is missing of it.

    Runs as one rank where a launcher (`accelerate launch`, torchrun) set RANK and WORLD_SIZE,
    else in `workers` processes of this machine.
    Raises ValueError (bad images, model or folder), OSError (disk), JobError (a worker failed).
    """
    from ..shards.images import open_images
    from .bottleneck import find_site
    from .diffusion import open_model
    from .engines.local import run_local
    from .engines.ranks import launched_ranks, run_rank
    from .job import Job, finalise
    from .plan import ModelInfo, claim_folder, make_plan

    source = open_images(images, download=download)
    opened = open_model(model)
    opened.check_labels(len(source.classes) if source.classes else None, config.guidance)
    if config.site == "middle":  # a word for every model; the plan holds the path in this one
        config = replace(config, site=opened.site)
    find_site(opened.network, config.site)
    plan = make_plan(config, ModelInfo(opened.sha256, opened.image_size), source)
    rank, world, local_rank = launched_ranks()
    claim_folder(plan, out)
    job = Job(plan, images, model, out)
    todo = job.todo()
    anchors = plan.source["samples"]
    left = sum(len(plan.anchors(shard)) for shard in todo)
    if rank == 0:
        announce(config, out / "config.json")
        click.echo(
            f"plan {plan.id[:12]}: {anchors} anchors, {plan.shards} shards, {len(todo)} to make",
            err=True,
        )
    with progress(anchors, "generate", "anchor", initial=anchors - left) as bar:
        if world > 1:
            # One bar for all ranks: rank 0 advances it by what the receipts say is done.
            count = partial(_show_receipts, bar, job) if rank == 0 else lambda anchors: None
            run_rank(job, todo, _devices(device, 1, local_rank)[0], count)
        elif todo:
            run_local(job, todo, _devices(device, workers), partial(_advance, bar))
    if not job.todo():  # the last rank to end finds every shard done
        shards = finalise(job)
        click.echo(f"{out}: {len(shards)} anchors, set {shards.id[:12]}", err=True)


def _show_receipts(bar: tqdm[Any], job: Job, _: int) -> None:
    done = sum(1 for _ in (job.out / "receipts").glob("*.json"))
    _advance(bar, min(done * job.plan.config.shard_size, job.plan.source["samples"]) - int(bar.n))


def _advance(bar: tqdm[Any], anchors: int) -> None:
    bar.update(anchors)


def _devices(device: str, workers: int | None, first: int = 0) -> list[str]:
    """Return one device name for each worker; GPUs in turn, beginning with number `first`."""
    import torch

    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    if device == "cuda" and not gpus:
        raise ValueError("--device cuda: torch finds no GPU here; use --device cpu")
    if not gpus:
        name = "cpu" if device == "auto" else device
        return [name] * (workers or (len(os.sched_getaffinity(0)) if name == "cpu" else 1))
    return [f"cuda:{(first + n) % gpus}" for n in range(workers or gpus)]


if __name__ == "__main__":
    main()
