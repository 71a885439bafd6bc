"""The `clsp` command: a group that imports a stage only when that stage is asked for."""

from __future__ import annotations

from typing import Any

import click

from .lazy import LazyGroup

# name: (module, attribute, one line for `clsp --help`)
_COMMANDS = {
    "demo": ("clsp.demo", "main", "Run every stage on 8x8 digits: minutes on a CPU, no download."),
    "fit": ("clsp.generate.fit", "main", "Train a diffusion model on an image source."),
    "generate": ("clsp.generate.__main__", "main", "Make K positives per anchor as a shard set."),
    "train": ("clsp.train.__main__", "main", "Train an encoder on a shard set."),
    "features": ("clsp.generate.features", "main", "Keep a diffusion model's features of images."),
    "evaluate": ("clsp.evaluate.__main__", "main", "Measure an encoder and write a report."),
    "shards": ("clsp.shards.__main__", "main", "Index, verify, share and describe shard sets."),
}


@click.group(
    cls=LazyGroup, lazy=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="clsp")
def main(**_: Any) -> None:
    """Make hard positives for contrastive learning with a diffusion model; train on them."""
