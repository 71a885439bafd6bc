"""What every stage's command line shares: lazy groups, recipes, the resolved config, progress."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import sys
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click
from tqdm import tqdm

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from .shards.cache import DEFAULT_LIMIT, default_cache
from .shards.files import write_atomic

Command = TypeVar("Command", bound=Callable[..., Any])
Config = TypeVar("Config")


class _Numbers(click.ParamType[Any]):
    """A comma-separated list on the command line, an array in a recipe, a tuple in the config."""

    def __init__(self, number: type) -> None:
        self.number = number
        self.name = f"{number.__name__},..."

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> tuple[Any, ...]:
        parts = [p for p in value.split(",") if p] if isinstance(value, str) else value
        try:
            return tuple(self.number(part) for part in parts)
        except (TypeError, ValueError):
            self.fail(f"{value!r} is not {self.number.__name__} values joined by commas")


class _Span(click.ParamType[Any]):
    """`A:B` on the command line, [A, B] in a recipe, a pair in the config.

    single: one number alone is a value too.
    """

    def __init__(self, number: type, single: bool) -> None:
        self.number, self.single = number, single
        self.name = f"{number.__name__}|A:B" if single else "A:B"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> Any:
        parts = value.split(":") if isinstance(value, str) else value
        parts = parts if isinstance(parts, list | tuple) else [parts]
        try:
            numbers = tuple(self.number(part) for part in parts)
        except (TypeError, ValueError):
            numbers = ()
        if len(numbers) == 1 and self.single:
            return numbers[0]
        if len(numbers) == 2:
            return numbers
        self.fail(f"{value!r} is not {self.name}")


def config_options(config: type) -> Callable[[Command], Command]:
    """Add one click option for each field of a config dataclass.

    The dataclass owns names, defaults and help (`field(metadata={"help": ...})`). A field without
    a default is a required option; `Literal` types become choices, booleans `--x/--no-x`, a tuple
    of any length `A,B,C`, a pair `A:B`, and a number or a pair of them either. A trailing
    underscore in a field's name (a Python keyword) is dropped in the option's.
    """
    types = typing.get_type_hints(config)

    def add(command: Command) -> Command:
        for item in reversed(dataclasses.fields(config)):
            hint, flag = types[item.name], item.name.rstrip("_").replace("_", "-")
            required = item.default is dataclasses.MISSING
            settings: dict[str, Any] = {"help": item.metadata.get("help"), "required": required}
            if not required:
                settings |= {"default": item.default, "show_default": True}
            if hint is bool:
                command = click.option(f"--{flag}/--no-{flag}", item.name, **settings)(command)
                continue
            arguments = typing.get_args(hint)
            if typing.get_origin(hint) is typing.Literal:
                settings["type"] = click.Choice(list(arguments))
            elif pair := _pair(hint):
                number = typing.get_args(pair)[0]
                settings["type"] = _Span(number, pair is not hint and number in arguments)
            elif typing.get_origin(hint) is tuple:
                settings["type"] = _Numbers(arguments[0])
                if not required:
                    settings["show_default"] = ",".join(map(str, item.default)) or "none"
            else:
                # An optional field, `int | None`, is its other type on the command line.
                settings["type"] = next((a for a in arguments if a is not type(None)), hint)
            command = click.option(f"--{flag}", item.name, **settings)(command)
        return command

    return add


def _pair(hint: Any) -> Any:
    """Return the type of a pair, `tuple[N, N]`, that `hint` is or has among its choices."""
    for option in (hint, *typing.get_args(hint)):
        arguments = typing.get_args(option)
        if typing.get_origin(option) is tuple and len(arguments) == 2 and arguments[1] is not ...:
            return option
    return None


def build_config(config: type[Config], values: dict[str, Any]) -> Config:
    """Make the config from parsed options; its ValueError becomes the command's usage error."""
    try:
        return config(**values)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def load_recipe(name: str, folder: Path) -> dict[str, Any]:
    """Read a recipe: a name in `folder` (without .toml), or the path of a TOML file.

    Returns flat option values. Raises click.BadParameter when there is no such recipe.
    """
    path = Path(name) if name.endswith(".toml") else folder / f"{name}.toml"
    if not path.is_file():
        known = sorted(p.stem for p in folder.glob("*.toml"))
        raise click.BadParameter(
            f"{name!r} is neither a TOML file nor one of: {', '.join(known)}"
            f"{_nearest(name, known)}",
            param_hint="--recipe",
        )
    try:
        return tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise click.BadParameter(f"{path} is not TOML: {error}", param_hint="--recipe") from error


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def recipe_option(folder: Path) -> Callable[[Command], Command]:
    """Add `--recipe NAME|FILE.toml` to a click command; flags given by hand win over it.

    A recipe's keys are the command's option names (dashes or underscores). An unknown key is an
    error that suggests the nearest known one.
    """

    def apply(context: click.Context, _: click.Parameter, value: str | None) -> str | None:
        if value is None:
            return None
        known = {
            option.lstrip("-").replace("-", "_"): parameter.name
            for parameter in context.command.params
            for option in (*parameter.opts, *parameter.secondary_opts)
        }
        defaults: dict[str, Any] = {}
        for key, setting in load_recipe(value, folder).items():
            name = known.get(key.replace("-", "_"))
            if name is None or name == "recipe":
                hint = _nearest(key.replace("-", "_"), known)
                raise click.BadParameter(
                    f"recipe {value!r} has an unknown key {key!r}{hint}", param_hint="--recipe"
                )
            defaults[name] = setting
        context.default_map = {**(context.default_map or {}), **defaults}
        return value

    return click.option(
        "--recipe",
        metavar="NAME|FILE.toml",
        is_eager=True,
        expose_value=False,
        callback=apply,
        help="Start from a named recipe or a TOML file; flags override it.",
    )


def cache_option(command: Command) -> Command:
    """Add `--cache DIR` to a click command."""
    return click.option(
        "--cache",
        default=default_cache,
        show_default="~/.cache/clsp",
        type=click.Path(path_type=Path),
        help="Where what was fetched, decoded or computed is kept.",
    )(command)


def cache_limit_option(command: Command) -> Command:
    """Add `--cache-limit GB` to a click command; the value arrives in bytes."""
    return click.option(
        "--cache-limit",
        metavar="GB",
        type=click.FloatRange(min=0, min_open=True),
        default=DEFAULT_LIMIT / 1e9,
        show_default=True,
        callback=lambda context, parameter, value: int(value * 1e9),
        help="What fetched shards may take in the cache; the least recently used go first.",
    )(command)


def config_json(config: Any) -> bytes:
    """Return a config dataclass as the JSON that is saved beside a result."""
    return (json.dumps(dataclasses.asdict(config), indent=2, sort_keys=True) + "\n").encode()


def announce(config: Any, path: Path | None = None) -> None:
    """Print a resolved config dataclass to stderr and save it as JSON at `path`."""
    for name, value in dataclasses.asdict(config).items():
        click.echo(f"  {name} = {json.dumps(value)}", err=True)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, config_json(config))


def say_result(place: Path) -> None:
    """Print where a result lies, from the first rank only."""
    if os.environ.get("RANK", "0") == "0":
        click.echo(place)


def progress(total: int, desc: str, unit: str, initial: int = 0, *, show: bool = True) -> tqdm[Any]:
    """Return a progress bar with rate and ETA on stderr; silent when that is not a terminal.

    show: False on every rank but one.
    """
    return tqdm(
        total=total,
        desc=desc,
        unit=unit,
        initial=initial,
        disable=None if show else True,
        dynamic_ncols=True,
    )
