"""`clsp evaluate sweep`: the paper's ablations, generate -> train -> evaluate for each value.

It stands beside the stages, as the demo does, because they never call each other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .points import Stages, plan_points, read_over
from .recipes import build_config, cache_option

if TYPE_CHECKING:
    from .evaluate.config import EvaluateConfig
    from .evaluate.report import Arm
    from .train.config import TrainConfig


def sweep(
    base: Stages,
    over: Mapping[str, Sequence[Any]],
    places: Mapping[str, str],
    out: Path,
    *,
    cache: Path,
    seeds: int = 1,
    by: str = "linear_top1",
    device: str = "auto",
    workers: int | None = None,
) -> dict[str, list[Arm]]:
    """Run every stage for each value of each axis, into `out`; return the arms by axis.

    over: values by axis, one axis changed at a time; places: "images" and "model" of the sets,
    "train" and "test" of the probes. Sets and runs whose settings are equal are shared: lambda and
    epochs need no set of their own, and a smaller K takes the first K positives of the largest.
    What is done is found again. Raises ValueError and OSError as the stages do.
    """
    from .evaluate.__main__ import evaluate
    from .evaluate.compare import load_run
    from .evaluate.report import Arm
    from .train.loop import train

    points = plan_points(base, over)
    every = {p.run_name(0): p for of_axis in points.values() for p in of_axis.values()}
    made = _make_sets(list(every.values()), places, out, device, workers)
    results: dict[str, list[Any]] = {name: [] for name in every}
    for seed in range(seeds):
        for name, point in every.items():
            run = out / "runs" / point.run_name(seed)
            config = replace(point.train, seed=seed)
            address = str(made[point.set_name()])
            wanted = {
                "encoder": str(run / "encoder"),
                "train": places["train"],
                "test": places["test"],
                "set": address,
            }
            found = run / "evaluation"
            if not _done(found, config, point.probe, wanted):
                click.echo(f"{run.name}", err=True)
                train(config, address, run, cache=cache)
                evaluate(point.probe, wanted, found, cache=cache, device=device)
            results[name].append(load_run(found).result)
    arms = {
        axis: [
            Arm(f"{axis} {value:g}", tuple(results[p.run_name(0)]), tuple(range(seeds)))
            for value, p in of_axis.items()
        ]
        for axis, of_axis in points.items()
    }
    _write(out, base, points, arms, by, places)
    return arms


def _make_sets(
    points: Sequence[Stages],
    places: Mapping[str, str],
    out: Path,
    device: str,
    workers: int | None,
) -> dict[str, Path]:
    """Make the sets that the points need; return their folders by name."""
    from .generate.run import generate
    from .shards.share import pull

    made: dict[str, Path] = {}
    # The largest K first: positive j is the same for any K, so the others are parts of its set.
    for point in sorted(points, key=lambda p: -p.generate.positives):
        name, count = point.set_name(), point.generate.positives
        if name in made:
            continue
        folder = out / "sets" / name
        same = [p for p in points if replace(p.generate, positives=count) == point.generate]
        largest = max(same, key=lambda p: p.generate.positives)
        # What an earlier sweep made stays what it is: runs were trained on it.
        parts = sorted(folder.parent.glob(f"{name}-of-K*"))
        if parts or (largest.generate.positives > count and not (folder / "plan.json").exists()):
            whole = int(parts[0].name.rpartition("-of-K")[2]) if parts else largest.value("K")
            made[name] = folder.parent / f"{name}-of-K{whole}"
            pull(str(folder.parent / point.at("K", whole).set_name()), made[name], positives=count)
        else:
            made[name] = folder
            generate(
                point.generate,
                places["images"],
                places["model"],
                made[name],
                device=device,
                workers=workers,
            )
    return made


def _done(
    found: Path, config: TrainConfig, probe: EvaluateConfig, wanted: Mapping[str, str]
) -> bool:
    from .evaluate.compare import load_run

    if not (found / "results.json").exists():
        return False
    run = load_run(found)
    same = all(run.about[name] == value for name, value in wanted.items())
    settings = json.loads(run.about["settings"]) == json.loads(json.dumps(asdict(probe)))
    return same and settings and run.training == json.loads(json.dumps(asdict(config)))


def _write(
    out: Path,
    base: Stages,
    points: Mapping[str, Mapping[Any, Stages]],
    arms: Mapping[str, Sequence[Arm]],
    by: str,
    places: Mapping[str, str],
) -> None:
    """Write OUT/sweep.json, OUT/sweep.md, OUT/report.html and its figure."""
    from .evaluate.about import commit, hardware
    from .evaluate.figures import sweep_figure
    from .evaluate.page import facts, heading, note, picture, table, write_page
    from .evaluate.report import comparison, score_name, score_rows, spread_note, text_table
    from .shards.files import write_atomic

    about = {**places, "commit": commit(), "hardware": hardware()}
    about |= {
        f"settings of {stage}": json.dumps(asdict(getattr(base, stage)))
        for stage in ("generate", "train", "probe")
    }
    values = {
        axis: {
            f"{value:g}": {"run": p.run_name(0), "scores": [r.scores for r in arm.results]}
            for (value, p), arm in zip(points[axis].items(), of_axis, strict=True)
        }
        for axis, of_axis in arms.items()
    }
    text = json.dumps({"base": base.run_name(0), "sweep": values, "about": about}, indent=2)
    write_atomic(out / "sweep.json", (text + "\n").encode())
    every = [arm for of_axis in arms.values() for arm in of_axis]
    head, rows = score_rows(every)
    write_atomic(out / "sweep.md", text_table(head, rows).encode())
    plotted = {
        axis: {value: arm.scores(by) for value, arm in zip(points[axis], of_axis, strict=True)}
        for axis, of_axis in arms.items()
    }
    label = f"{score_name(by)}, percent"
    parts = [
        heading("Scores"),
        table(head, rows),
        note(
            f"Percent of held-out images; {spread_note(every)}. One setting is changed at a time."
        ),
        picture(sweep_figure(plotted, label), f"{label} by setting", out / "figures", "sweep"),
    ]
    for axis, of_axis in arms.items():
        own = list(points[axis]).index(base.value(axis))
        others = [arm for number, arm in enumerate(of_axis) if number != own]
        if others:
            parts += [heading(axis), comparison([of_axis[own], *others], by)]
    parts += [heading("How it was made"), facts(about)]
    lead = f"Each of {', '.join(arms)} by itself; the rest as in {base.run_name(0)}."
    write_page(out / "report.html", "Sweep", lead, parts)


def _stage(command: click.Command, config: type, recipe: str | None, *required: str) -> Any:
    """The settings that a stage's own command would have with this recipe."""
    words = [word for name in required for word in (f"--{name}", "none")]
    words += ["--recipe", recipe] if recipe else []
    params = command.make_context(command.name, words).params
    return build_config(config, {item.name: params[item.name] for item in fields(config)})


@click.command()
@click.option("--over", multiple=True, required=True, metavar="NAME=VALUE,...")
@click.option("--images", required=True, help="Image source of the anchors.")
@click.option("--model", required=True, help="Diffusion model, as `clsp generate` takes it.")
@click.option("--train", "fitted", required=True, help="Labelled images to fit the probes on.")
@click.option("--test", required=True, help="Labelled images to test on.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Output folder.")
@click.option("--seeds", default=1, show_default=True, type=click.IntRange(min=1))
@click.option("--generate", "sampling", metavar="RECIPE", help="Recipe of `clsp generate`.")
@click.option(
    "--pretrain",
    default="clsp-simclr",
    show_default=True,
    metavar="RECIPE",
    help="Recipe of `clsp train`.",
)
@click.option("--probe", "probing", metavar="RECIPE", help="Recipe of `clsp evaluate`.")
@click.option("--by", default="linear_top1", show_default=True, help="The score to plot.")
@click.option("--device", default="auto", show_default=True, help="Of generation and probes.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes that generate.")
@cache_option
def main(
    over: tuple[str, ...],
    images: str,
    model: str,
    fitted: str,
    test: str,
    out: Path,
    seeds: int,
    sampling: str | None,
    pretrain: str,
    probing: str | None,
    by: str,
    device: str,
    workers: int | None,
    cache: Path,
) -> None:
    """Generate, train and probe for each value of w, K, steps, lambda or epochs.

    --over may be given several times; one setting is changed at a time, and the recipes' own values
    are run too. A RECIPE is a name or a TOML file. Sets and runs are shared where settings are
    equal, and found again by a rerun. Writes OUT/sweep.json, OUT/sweep.md and OUT/report.html.
    """
    from .evaluate.__main__ import probe
    from .evaluate.config import EvaluateConfig
    from .generate.__main__ import main as generate_command
    from .generate.config import GenerateConfig
    from .train.__main__ import main as train_command
    from .train.config import TrainConfig

    axes = read_over(over)
    base = Stages(
        _stage(generate_command, GenerateConfig, sampling, "images", "model", "out"),
        _stage(train_command, TrainConfig, pretrain, "set", "out"),
        _stage(probe, EvaluateConfig, probing, "encoder", "train", "test", "out"),
    )
    places = {"images": images, "model": model, "train": fitted, "test": test}
    try:
        sweep(
            base,
            axes,
            places,
            out,
            cache=cache,
            seeds=seeds,
            by=by,
            device=device,
            workers=workers,
        )
    except (ValueError, OSError, RuntimeError) as error:
        raise click.ClickException(str(error)) from error
    click.echo((out / "sweep.md").read_text(), nl=False)


if __name__ == "__main__":
    main()
