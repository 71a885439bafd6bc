"""The settings that `clsp evaluate sweep` runs: what an axis is, and the points along each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from .evaluate.config import EvaluateConfig
    from .generate.config import GenerateConfig
    from .train.config import TrainConfig

# name: how its values are read, and the field of the config that has it
_AXES: dict[str, tuple[type, str]] = {
    "w": (float, "w"),
    "K": (int, "positives"),
    "steps": (int, "steps"),
    "lambda": (float, "lambda_"),
    "epochs": (int, "epochs"),
}
_OF_SET = ("w", "K", "steps")


@dataclass(frozen=True)
class Stages:
    """The settings of the three stages, of which a sweep changes one at a time."""

    generate: GenerateConfig
    train: TrainConfig
    probe: EvaluateConfig

    def value(self, axis: str) -> Any:
        """Return what is set for w, K, steps, lambda or epochs."""
        return getattr(self.generate if axis in _OF_SET else self.train, _AXES[axis][1])

    def at(self, axis: str, value: Any) -> Stages:
        """Return these settings with another value of one axis. Raises ValueError for a bad one."""
        changed = {_AXES[axis][1]: value}
        if axis in _OF_SET:
            return replace(self, generate=replace(self.generate, **changed))
        return replace(self, train=replace(self.train, **changed))

    def set_name(self) -> str:
        """Return the name of the folder of the set that training reads."""
        return "-".join(f"{axis}{_word(self.value(axis))}" for axis in _OF_SET)

    def run_name(self, seed: int) -> str:
        """Return the name of a training run's folder: equal settings share it."""
        rest = [f"{axis}{_word(self.value(axis))}" for axis in _AXES if axis not in _OF_SET]
        return "-".join([self.set_name(), *rest, f"seed{seed}"])


def _word(value: Any) -> str:
    values = value if isinstance(value, tuple) else (value,)
    return "_".join(f"{number:g}" for number in values)


def plan_points(base: Stages, over: Mapping[str, Sequence[Any]]) -> dict[str, dict[Any, Stages]]:
    """Return the settings by axis and value, in rising order; the base's own value is among them.

    Raises ValueError for a value out of range, and for training that takes no positives.
    """
    if base.train.positive != "synthetic":
        raise ValueError(
            f"a sweep is about synthetic positives, but positive is {base.train.positive!r}: "
            "give a recipe such as clsp-simclr"
        )
    points: dict[str, dict[Any, Stages]] = {}
    for axis, values in over.items():
        if isinstance(base.value(axis), tuple):
            raise ValueError(f"{axis} is {base.value(axis)} in the recipe, expected one number")
        ordered = sorted({base.value(axis), *values})
        points[axis] = {value: base.at(axis, value) for value in ordered}
    return points


def read_over(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Return the values by axis of "NAME=VALUE,...". Raises click.BadParameter for another text."""
    over: dict[str, list[Any]] = {}
    for text in texts:
        axis, equals, values = text.partition("=")
        if not equals or axis not in _AXES:
            raise click.BadParameter(
                f"{text!r} is not NAME=VALUE,... with NAME of {', '.join(_AXES)}",
                param_hint="--over",
            )
        read = _AXES[axis][0]
        try:
            over.setdefault(axis, []).extend(read(value) for value in values.split(","))
        except ValueError as error:
            raise click.BadParameter(
                f"{values!r} is not {read.__name__} values joined by commas", param_hint="--over"
            ) from error
    return over
