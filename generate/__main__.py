"""`clsp generate`: images and a diffusion model in, a shard set out."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..recipes import (
    announce,
    build_config,
    config_json,
    config_options,
    progress,
    recipe_option,
)
from .config import GenerateConfig

if TYPE_CHECKING:
    from tqdm import tqdm

    from ..shards.images import ImageSource
    from .cost import Cost
    from .denoiser import DiffusionModel
    from .job import Job

RECIPES = Path(__file__).parent / "recipes"
ENGINES = ("local", "ray")


def _print_status(context: click.Context, _: click.Parameter, place: str | None) -> None:
    if place is None:
        return
    from .output import open_output
    from .status import describe, read_status

    try:
        output = open_output(place)
        click.echo(describe(output, read_status(output)))
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    context.exit()


class _SomeLeftOut(click.ClickException):
    exit_code = 3


class _Slice(click.ParamType["slice[Any, Any, Any]"]):
    name = "A:B"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> slice:
        first, colon, end = value.partition(":")
        try:
            if not colon:
                raise ValueError
            return slice(int(first or 0), int(end) if end else None)
        except ValueError:
            self.fail(f"{value!r} is not A:B, the numbers of the first shard and of the one after")


@click.command()
@click.option("--images", required=True, help="Image source, e.g. digits or folder:PATH.")
@click.option("--model", required=True, help="Diffusers folder or hub id, or a reference .pt file.")
@click.option("--out", required=True, help="The set's folder, or s3://BUCKET/PREFIX.")
@click.option(
    "--image-size",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Pixels a side that a reference .pt file was trained for, which does not say it.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes; default: GPUs or cores.")
@click.option(
    "--engine", type=click.Choice(ENGINES), default="local", show_default=True, help="Who works."
)
@click.option("--address", help="The Ray cluster's address; default: Ray on this machine.")
@click.option("--shards", type=_Slice(), help="Make only shards A to B-1, as one task of many.")
@click.option(
    "--inspect",
    type=click.IntRange(min=2),
    metavar="N",
    help="Measure how much of N anchors survives, into OUT/inspect.png and .json, and exit.",
)
@click.option("--dry-run", is_flag=True, help="Print what it would cost, and make nothing.")
@click.option("--probe", default=20.0, show_default=True, help="Seconds of the dry run's probe.")
@click.option("--compile", "compiled", is_flag=True, help="Speed the denoiser by torch.compile.")
@click.option("--download", is_flag=True, help="Fetch the image data set if it is not there.")
@click.option(
    "--status",
    metavar="OUT",
    is_eager=True,
    expose_value=False,
    callback=_print_status,
    help="Print what is done, running, failed and missing in OUT, and exit.",
)
@recipe_option(RECIPES)
@config_options(GenerateConfig)
def main(
    images: str,
    model: str,
    out: str,
    image_size: int,
    device: str,
    workers: int | None,
    engine: str,
    address: str | None,
    shards: slice | None,
    inspect: int | None,
    dry_run: bool,
    probe: float,
    compiled: bool,
    download: bool,
    **options: Any,
) -> None:
    """Sample K positives for every image and write them as a shard set.

    Stopped or killed at any moment, the same command goes on; the set does not depend on the
    engine, the number of workers, nor on how often they died. Exit code 3: some shards failed
    three times and were left out; the last lines name them.
    """
    from .marks import QuarantineError

    config = build_config(GenerateConfig, options)
    try:
        if config.site == "list":
            click.echo(_sites(model, image_size))
            return
        if inspect or dry_run:
            inputs = open_inputs(config, images, model, image_size=image_size, download=download)
            devices = _devices(device, workers)
            if inspect:
                click.echo(_inspect(*inputs, out, inspect, devices[0]))
            else:
                click.echo(_cost(*inputs, devices, probe, compiled))
            return
        generate(
            config,
            images,
            model,
            out,
            image_size=image_size,
            device=device,
            workers=workers,
            engine=engine,
            address=address,
            shards=shards,
            compiled=compiled,
            download=download,
        )
    except (ValueError, OSError, RuntimeError) as error:
        left_out = isinstance(error, QuarantineError)
        raise (_SomeLeftOut if left_out else click.ClickException)(str(error)) from error


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
    compiled: bool = False,
    download: bool = False,
) -> None:
    """Make the shard set of `config` at `out`, or what is missing of it.

    image_size: of a reference checkpoint, which does not say it.
    engine: "local" runs `workers` processes of this machine, or this process as one rank where a
    launcher (`accelerate launch`, torchrun) set RANK and WORLD_SIZE; "ray" runs `workers` actors of
    the Ray cluster at `address`.
    shards: make these only; whoever finds all shards of the plan done finishes the set.
    compiled: let torch.compile speed up the denoiser; the receipts say so.
    Raises ValueError (bad images, model, place or engine), OSError (disk), JobError (workers cannot
    work), QuarantineError (some shards failed three times; all others are done).
    """
    from .engines.local import run_local
    from .engines.ranks import launched_ranks, run_here, share
    from .job import Job, finalise
    from .marks import QuarantineError, failures, forgive, report
    from .output import open_output
    from .plan import ModelInfo, claim, make_plan

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
            run_here(job, mine, _devices(device, 1, local_rank)[0], count)
        elif mine:
            run_local(job, mine, _devices(device, workers), partial(_advance, bar))
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
    from ..shards.images import open_images
    from .bottleneck import find_site
    from .diffusion import open_model

    source = open_images(images, download=download)
    opened = open_model(model, image_size=image_size)
    opened.check_labels(len(source.classes) if source.classes else None, config.guidance)
    if config.site == "middle":
        config = replace(config, site=opened.site)
    find_site(opened.network, config.site)
    return config, source, opened


def _sites(model: str, image_size: int) -> str:
    """Return a line for each module that can be mixed: its path, and the shape of its output."""
    from .diffusion import open_model

    opened = open_model(model, image_size=image_size)
    rows = [
        f"{path:48} {' x '.join(map(str, shape))}{'  (middle)' * (path == opened.site)}"
        for path, shape in opened.sites().items()
    ]
    return "\n".join(rows)


def _cost(
    config: GenerateConfig,
    source: ImageSource,
    opened: DiffusionModel,
    devices: list[str],
    probe: float,
    compiled: bool,
) -> Cost:
    import torch

    from .cost import estimate
    from .job import THREADS

    torch.set_num_threads(THREADS)
    opened.to(devices[0], getattr(torch, config.dtype), channels_last=config.channels_last)
    return estimate(
        config,
        opened,
        source,
        device=devices[0],
        workers=len(devices),
        probe=probe,
        compiled=compiled,
    )


def _inspect(
    config: GenerateConfig,
    source: ImageSource,
    opened: DiffusionModel,
    out: str,
    anchors: int,
    device: str,
) -> str:
    import torch

    from .inspection import as_json, describe, inspect
    from .output import open_output

    opened.to(device, getattr(torch, config.dtype), channels_last=config.channels_last)
    results, sheet = inspect(config, opened, source, anchors=anchors, device=device)
    output = open_output(out)
    output.write("inspect.json", (json.dumps(as_json(results), indent=2) + "\n").encode())
    output.write("inspect.png", sheet)
    return f"{describe(results, config)}\n{output}/inspect.png"


def _show_receipts(bar: tqdm[Any], job: Job, _: int) -> None:
    done = len(job.output.entries("receipts"))
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
