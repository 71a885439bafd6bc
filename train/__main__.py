"""`clsp train`: a shard set in, an encoder out."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ..recipes import (
    build_config,
    cache_limit_option,
    cache_option,
    config_options,
    recipe_option,
    say_result,
)
from .config import TrainConfig
from .options import RunOptions

RECIPES = Path(__file__).parent / "recipes"


@click.command()
@click.option(
    "--set", "address", required=True, help="The shard set: a folder, https://, s3:// or hf://."
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Output folder.")
@click.option("--compare", default="", metavar="RECIPE,...", help="Run these recipes as arms.")
@click.option(
    "--seeds", default=1, show_default=True, type=click.IntRange(min=1), help="Runs of each arm."
)
@cache_option
@cache_limit_option
@config_options(RunOptions)
@recipe_option(RECIPES)
@config_options(TrainConfig)
@click.pass_context
def main(
    context: click.Context,
    /,
    address: str,
    out: Path,
    compare: str,
    seeds: int,
    cache: Path,
    cache_limit: int,
    **settings: Any,
) -> None:
    """Pretrain an encoder on a shard set.

    A set that lies elsewhere is streamed: training starts when its first shard is here.

    Stopped or killed at any moment, the same command goes on from the last checkpoint. OUT/encoder
    is what `clsp evaluate` and `clsp.train.load_encoder` open; OUT/tensorboard holds the curves.

    With --compare, every recipe is run with every seed, flags applying to all of them, into
    OUT/RECIPE-SEED; OUT/compare.md and compare.png put them side by side.
    """
    names = [field.name for field in fields(RunOptions)]
    options = build_config(RunOptions, {name: settings.pop(name) for name in names})
    runs: dict[str, list[Path]] = {}
    if compare:
        arms = {name: _arm(context, name, seeds) for name in dict.fromkeys(compare.split(","))}
        configs = {out / f"{arm}-{c.seed}": c for arm, all_ in arms.items() for c in all_}
        runs = {arm: [out / f"{arm}-{c.seed}" for c in all_] for arm, all_ in arms.items()}
    else:
        configs = {out: build_config(TrainConfig, settings)}
    from .compare import write_comparison
    from .loop import train

    try:
        for place, config in configs.items():
            encoder = train(
                config, address, place, cache=cache, cache_limit=cache_limit, options=options
            )
            say_result(encoder)
        if runs:
            click.echo(write_comparison(out, runs))
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error


def _arm(context: click.Context, recipe: str, seeds: int) -> list[TrainConfig]:
    """The configs of a recipe's seeds: the recipe's settings, and above them the flags given."""
    if "WORLD_SIZE" in os.environ and int(os.environ["WORLD_SIZE"]) > 1:
        raise click.UsageError("--compare runs on one device; launch its arms one by one")
    given = {
        name: value
        for name, value in context.params.items()
        if context.get_parameter_source(name) == ParameterSource.COMMANDLINE
    }
    if context.default_map:
        raise click.UsageError("--compare names its recipes itself; leave out --recipe")
    arguments = ["--set", "", "--out", "", "--recipe", recipe]
    parsed = main.make_context(context.info_name, arguments).params | given
    values = {field.name: parsed[field.name] for field in fields(TrainConfig)}
    first = values.pop("seed")
    return [
        build_config(TrainConfig, {**values, "seed": seed}) for seed in range(first, first + seeds)
    ]


if __name__ == "__main__":
    main()
