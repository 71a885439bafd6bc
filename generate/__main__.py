"""`clsp generate`: images and a diffusion model in, a shard set out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..recipes import build_config, config_options, recipe_option
from .config import GenerateConfig, image_size_option
from .engines import ENGINES

if TYPE_CHECKING:
    from ..shards.images import ImageSource
    from .cost import Cost
    from .denoiser import DiffusionModel

RECIPES = Path(__file__).parent / "recipes"


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
@image_size_option
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
@click.option(
    "--compile",
    "compiled",
    is_flag=False,
    flag_value="default",
    type=click.Choice(["default", "reduce-overhead"]),
    help="Speed the denoiser by torch.compile; reduce-overhead: with CUDA graphs, on a GPU.",
)
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
    compiled: str | None,
    download: bool,
    **options: Any,
) -> None:
    """Sample K positives for every image and write them as a shard set.

    Stopped or killed at any moment, the same command goes on; the set does not depend on the
    engine, the number of workers, nor on how often they died. Exit code 3: some shards failed
    three times and were left out; the last lines name them.
    """
    from .marks import QuarantineError
    from .run import devices_of, generate, open_inputs

    config = build_config(GenerateConfig, options)
    try:
        if config.site == "list":
            click.echo(_sites(model, image_size))
            return
        if inspect or dry_run:
            inputs = open_inputs(config, images, model, image_size=image_size, download=download)
            devices = devices_of(device, workers)
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
    compiled: str | None,
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


if __name__ == "__main__":
    main()
