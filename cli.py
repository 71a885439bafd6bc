"""The `clsp` command: a group that imports a stage only when that stage is asked for."""

from __future__ import annotations

import importlib
from typing import Any

import click

# name: (module, attribute, one line for `clsp --help`)
_COMMANDS = {
    "demo": ("clsp.demo", "main", "Run every stage on 8x8 digits: minutes on a CPU, no download."),
    "fit": ("clsp.generate.fit", "main", "Train a diffusion model on an image source."),
    "generate": ("clsp.generate.__main__", "main", "Make K positives per anchor as a shard set."),
    "train": ("clsp.train.__main__", "main", "Train an encoder on a shard set."),
    "evaluate": ("clsp.evaluate.__main__", "main", "Measure an encoder and write a report."),
    "shards": ("clsp.shards.__main__", "main", "Index, verify and describe shard sets."),
}


class _LazyGroup(click.Group):
    """Importing torch takes seconds; `--help` and typing errors should not."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="clsp")
def main(**_: Any) -> None:
    """Make hard positives for contrastive learning with a diffusion model; train on them."""
