"""`clsp evaluate compare`: evaluated encoders side by side, seeds of one training together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from ..shards.files import write_atomic
from .__main__ import read_curves
from .about import commit
from .probe import Result
from .report import Arm, Report, write_report

_SAME = ("train", "test", "settings")  # what must agree for scores to be comparable
_MOST_NAMED = 4  # settings in an arm's name; more are told by its folder


@dataclass(frozen=True)
class Run:
    """One evaluated encoder: the folder of its results.json, and what is in there."""

    folder: Path
    result: Result
    classes: tuple[str, ...]
    about: dict[str, str]
    training: dict[str, Any]

    @property
    def seed(self) -> int:
        """The seed it was trained with; 0 when that is not known."""
        return int(self.training.get("seed", 0))

    @property
    def way(self) -> dict[str, Any]:
        """How it was trained, seeds apart; of an encoder made elsewhere, which it is."""
        way = {name: value for name, value in self.training.items() if name != "seed"}
        return way if "positive" in way else {"encoder": self.about["encoder"]}


def load_run(folder: Path) -> Run:
    """Read what `clsp evaluate` wrote into a folder. Raises ValueError when it is not that."""
    path = folder / "results.json"
    try:
        values = json.loads(path.read_bytes())
        about, classes = values["about"], tuple(values["classes"])
        confusion = np.array(values["confusion"], np.int64)
        training = json.loads(about["training"])
        curves = read_curves(Path(about["encoder"]).parent)
        return Run(folder, Result(values["scores"], confusion, curves), classes, about, training)
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing: {folder} is no --out of `clsp evaluate`") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not what `clsp evaluate` writes: {error!r}") from error


def group_arms(runs: Sequence[Run]) -> list[Arm]:
    """Return the ways of training in the order in which they first come, each with its seeds.

    An arm is named by the settings in which the arms differ. Raises ValueError for runs that were
    measured on other images or with other settings, and for a seed that comes twice.
    """
    for run in runs[1:]:
        for name in _SAME:
            if _comparable(run.about, name) != _comparable(runs[0].about, name):
                raise ValueError(
                    f"{run.folder} has {name} {run.about.get(name)}, {runs[0].folder} has "
                    f"{runs[0].about.get(name)}: their scores cannot be compared"
                )
    groups: list[list[Run]] = []
    for run in runs:
        group = next((g for g in groups if g[0].way == run.way), None)
        if group is None:
            groups.append([run])
        elif run.seed in (twice := {other.seed: other.folder for other in group}):
            raise ValueError(f"{run.folder} and {twice[run.seed]} are of one training and one seed")
        else:
            group.append(run)
    names = _names([group[0] for group in groups])
    arms = []
    for name, group in zip(names, groups, strict=True):
        ordered = sorted(group, key=lambda run: run.seed)
        results = tuple(run.result for run in ordered)
        arms.append(Arm(name, results, tuple(run.seed for run in ordered)))
    return arms


def _comparable(about: Mapping[str, str], name: str) -> Any:
    if name != "settings":
        return about.get(name)
    return {k: v for k, v in json.loads(about[name]).items() if k != "seed"}


def _names(runs: Sequence[Run]) -> list[str]:
    keys = list(dict.fromkeys(key for run in runs for key in run.way))
    different = [key for key in keys if len({json.dumps(run.way.get(key)) for run in runs}) > 1]
    if not different:
        return [str(runs[0].way.get("method", runs[0].folder))]
    if len(different) > _MOST_NAMED:
        return [str(run.folder) for run in runs]
    return [
        ", ".join(f"{key.rstrip('_')} {run.way[key]}" for key in different if key in run.way)
        for run in runs
    ]


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Output folder.")
@click.option("--by", default="linear_top1", show_default=True, help="The score to compare by.")
def main(runs: tuple[Path, ...], out: Path, by: str) -> None:
    """Put encoders side by side: RUN is an --out of `clsp evaluate`.

    Runs that differ in nothing but the seed are one arm. The first arm is what the others are
    compared with. Writes OUT/report.html, its figures and OUT/compare.json.
    """
    try:
        arms = compare(runs, out, by)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    for arm in arms:
        values = arm.scores(by)
        spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
        click.echo(f"{np.mean(values):6.2f}{spread}  {arm.name}")


def compare(folders: Sequence[Path], out: Path, by: str = "linear_top1") -> list[Arm]:
    """Write a report on several evaluated encoders; return the arms. Raises ValueError."""
    runs = [load_run(folder) for folder in folders]
    arms = group_arms(runs)
    for run in runs:
        if by not in run.result.scores:
            raise ValueError(f"{run.folder} has no score {by!r}: {', '.join(run.result.scores)}")
    out.mkdir(parents=True, exist_ok=True)
    values = {
        arm.name: {"seeds": arm.seeds, "scores": [r.scores for r in arm.results]} for arm in arms
    }
    write_atomic(out / "compare.json", (json.dumps(values, indent=2) + "\n").encode())
    first = runs[0]
    about = {name: first.about[name] for name in _SAME if name in first.about}
    for run in runs:
        made = [run.about[name] for name in ("commit", "hardware") if name in run.about]
        about[str(run.folder)] = ", ".join([run.about["encoder"], f"seed {run.seed}", *made])
    report = Report(
        title="Encoders compared",
        lead=f"{len(runs)} encoders, {len(arms)} ways of training.",
        arms=arms,
        classes=first.classes,
        about={**about, "commit": commit()},
        main=by,
    )
    write_report(out / "report.html", report)
    return arms


if __name__ == "__main__":
    main()
