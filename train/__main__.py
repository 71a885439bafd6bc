"""`clsp train`: a shard set in, an encoder out."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from ..recipes import (
    build_config,
    cache_limit_option,
    cache_option,
    config_options,
    recipe_option,
)
from .config import TrainConfig
from .options import RunOptions

RECIPES = Path(__file__).parent / "recipes"


@click.command()
@click.option(
    "--set", "address", required=True, help="The shard set: a folder, https://, s3:// or hf://."
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Output folder.")
@cache_option
@cache_limit_option
@config_options(RunOptions)
@recipe_option(RECIPES)
@config_options(TrainConfig)
def main(address: str, out: Path, cache: Path, cache_limit: int, **settings: Any) -> None:
    """Pretrain an encoder on a shard set.

    A set that lies elsewhere is streamed: training starts when its first shard is here.

    Stopped or killed at any moment, the same command goes on from the last checkpoint. OUT/encoder
    is what `clsp evaluate` and `clsp.train.load_encoder` open; OUT/tensorboard holds the curves.
    """
    names = [field.name for field in fields(RunOptions)]
    options = build_config(RunOptions, {name: settings.pop(name) for name in names})
    config = build_config(TrainConfig, settings)
    from .loop import train

    try:
        train(config, address, out, cache=cache, cache_limit=cache_limit, options=options)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
