"""Command groups that answer `--help` without importing their commands."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click


class LazyGroup(click.Group):
    """A command group that imports a command only when that command is asked for.

    lazy: name -> (module, attribute, one line for `--help`). default: the command that a call
    which begins with an option means, so `GROUP --flag` is `GROUP DEFAULT --flag`.

    Importing torch takes seconds; `--help` and typing errors should not.
    """

    def __init__(
        self,
        *arguments: Any,
        lazy: Mapping[str, tuple[str, str, str]],
        default: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(*arguments, **settings)
        self.lazy, self.default = lazy, default

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        first = args[0] if args else ""
        if self.default and first.startswith("-") and first not in context.help_option_names:
            args = [self.default, *args]
        return super().parse_args(context, args)

    def list_commands(self, context: click.Context) -> list[str]:
        return [*super().list_commands(context), *self.lazy]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in self.lazy:
            return super().get_command(context, name)
        module, attribute, _ = self.lazy[name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, command.get_short_help_str(60)) for name, command in self.commands.items()]
        rows += [(name, line) for name, (_, _, line) in self.lazy.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
