"""A whole run of generation: open, plan, claim the output, have the shards made, finish the set."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch

from ..recipes import announce, config_json, progress
from ..shards.images import ImageSource, open_images
from .bottleneck import find_site
from .config import GenerateConfig
from .denoiser import DiffusionModel
from .diffusion import open_model
from .engines import ENGINES
from .engines.local import run_local
from .engines.ranks import launched_ranks, run_here, share
from .job import Job, finalise
from .marks import QuarantineError, failures, forgive, report
from .output import open_output
from .plan import ModelInfo, claim, make_plan

if TYPE_CHECKING:
    from tqdm import tqdm


def generate(
    config: GenerateConfig,
    images: str,
    model: str,
    out: str | Path,
    *,
    image_size: int = 32,
    device: str = "auto",
    workers: int | None = None,
    engine: str = "local",
    address: str | None = None,
    shards: slice | None = None,
    compiled: str | None = None,
    download: bool = False,
) -> None:
    """Make the shard set of `config` at `out`, or what is missing of it.

    image_size: of a reference checkpoint, which does not say it.
    engine: "local" runs `workers` processes of this machine, or this process as one rank where a
    launcher (`accelerate launch`, torchrun) set RANK and WORLD_SIZE; "ray" runs `workers` actors of
    the Ray cluster at `address`.
    shards: make these only; whoever finds all shards of the plan done finishes the set.
    compiled: torch.compile's mode to speed up the denoiser; the receipts say it.
    Raises ValueError (bad images, model, place or engine), OSError (disk), JobError (workers cannot
    work), QuarantineError (some shards failed three times; all others are done).
    """
    if engine not in ENGINES:
        raise ValueError(f"engine {engine!r} is none of {', '.join(ENGINES)}")
    output = open_output(str(out))
    config, source, opened = open_inputs(
        config, images, model, image_size=image_size, download=download
    )
    plan = make_plan(config, ModelInfo(opened.sha256, opened.image_size), source)
    rank, world, local_rank = launched_ranks()
    claim(plan, output)
    job = Job(plan, images, model, output, compiled)
    chosen = range(plan.shards)[shards or slice(None)]
    todo = [shard for shard in job.todo() if shard in chosen]
    anchors = sum(len(plan.anchors(shard)) for shard in chosen)
    left = sum(len(plan.anchors(shard)) for shard in todo)
    if rank == 0:
        announce(config)
        output.write("config.json", config_json(config))
        click.echo(
            f"plan {plan.id[:12]}: {anchors} anchors, {len(chosen)} shards, {len(todo)} to make",
            err=True,
        )
    mine = share(todo)
    forgive(output, mine)
    with progress(anchors, "generate", "anchor", initial=anchors - left) as bar:
        if engine == "ray":
            from .engines.ray import run_ray

            run_ray(job, mine, device, workers, address, partial(_advance, bar))
        elif world > 1:
            # One bar for all ranks: rank 0 advances it by what the receipts say is done.
            count = partial(_show_receipts, bar, job) if rank == 0 else lambda anchors: None
            run_here(job, mine, devices_of(device, 1, local_rank)[0], count)
        elif mine:
            run_local(job, mine, devices_of(device, workers), partial(_advance, bar))
    missing = job.todo()
    if not missing:  # the last to end finds every shard done
        manifest = finalise(job)
        click.echo(f"{output}: {manifest.samples} anchors, set {manifest.id[:12]}", err=True)
        return
    failed = {s: failure for s, failure in failures(output).items() if s in chosen and s in missing}
    # A launcher ends all its ranks when one exits with an error, so the last one reports.
    if failed and (world == 1 or len(failed) == len(missing)):
        raise QuarantineError(report(output, failed.values()))


def open_inputs(
    config: GenerateConfig,
    images: str,
    model: str,
    *,
    image_size: int = 32,
    download: bool = False,
) -> tuple[GenerateConfig, ImageSource, DiffusionModel]:
    """Open images and model; return them, and the config with the site's path in this model.

    image_size: of a reference checkpoint, which does not say it.
    Raises ValueError when one of them cannot be opened, or does not suit the others.
    """
    source = open_images(images, download=download)
    opened = open_model(model, image_size=image_size)
    opened.check_labels(len(source.classes) if source.classes else None, config.guidance)
    if config.site == "middle":
        config = replace(config, site=opened.site)
    find_site(opened.network, config.site)
    return config, source, opened


def _show_receipts(bar: tqdm[Any], job: Job, _: int) -> None:
    done = len(job.output.entries("receipts"))
    _advance(bar, min(done * job.plan.config.shard_size, job.plan.source["samples"]) - int(bar.n))


def _advance(bar: tqdm[Any], anchors: int) -> None:
    bar.update(anchors)


def devices_of(device: str, workers: int | None, first: int = 0) -> list[str]:
    """Return one device name for each worker; GPUs in turn, beginning with number `first`."""
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    if device == "cuda" and not gpus:
        raise ValueError("--device cuda: torch finds no GPU here; use --device cpu")
    if not gpus:
        name = "cpu" if device == "auto" else device
        return [name] * (workers or (len(os.sched_getaffinity(0)) if name == "cpu" else 1))
    return [f"cuda:{(first + n) % gpus}" for n in range(workers or gpus)]
