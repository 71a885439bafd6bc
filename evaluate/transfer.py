"""`clsp evaluate transfer`: linear probes of frozen encoders on other data sets, as one table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from ..recipes import cache_option
from ..train.encoder import Encoder
from .compare import Run, group_arms
from .config import ENCODER_KINDS
from .datasets import DATA_SETS, Task, open_task, there
from .encoders import open_encoder
from .features import compute_features
from .kept import encoder_facts, keep, kept_path
from .linear import STRENGTHS, lbfgs_probe
from .metrics import METRICS
from .page import bullets, heading, note, table
from .probe import Result
from .report import Arm
from .table import write_arms

MEAN = "mean"
_FACTS = ("metric", "split", "images", "classes")


@dataclass(frozen=True)
class Transfer:
    """What was found: arms with a score a data set; facts of each data set; what failed, and why.

    With all data sets measured, there is also the score "mean" of all of them.
    """

    arms: tuple[Arm, ...]
    tasks: dict[str, dict[str, Any]]
    failures: dict[str, str]


def transfer(
    addresses: Sequence[str],
    root: Path,
    out: Path,
    *,
    datasets: Sequence[str] = (),
    cache: Path,
    seed: int = 0,
    device: str = "auto",
    download: bool = False,
) -> Transfer:
    """Probe each encoder on each data set below `root`, and write the table into `out`.

    datasets: names of DATA_SETS; none: all that are there, with `download` all. Features are
    frozen, of the centre square at the encoder's size; logistic regression is fitted by L-BFGS
    with its penalty chosen of 45 on the validation part. Each result is kept in `out`/results as
    soon as it is known and not measured again; a data set that fails is named and the others go on.
    seed: of the splits that are drawn. Raises ValueError for an encoder or data set that cannot
    be opened.

    Kornblith et al., 2019, arXiv:1805.08974; Chen et al., 2020, arXiv:2002.05709, appendix B.8.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    names = list(dict.fromkeys(datasets)) or (list(DATA_SETS) if download else there(root))
    if not names:
        folders = ", ".join(data.folder for data in DATA_SETS.values())
        raise ValueError(f"{root} holds none of the folders {folders}")
    encoders = {address: open_encoder(address) for address in addresses}
    abouts = {
        (name, address): {
            **encoder_facts(encoder),
            "data set": name,
            "root": str(Path(root).resolve()),
            "seed": seed,
        }
        for name in names
        for address, encoder in encoders.items()
    }
    results = out / "results"
    todo = {key for key, about in abouts.items() if not kept_path(results, key[0], about).exists()}
    # Opened before any work, so that what is not there is known at once.
    tasks: dict[str, Task] = {}
    failures: dict[str, str] = {}
    for name in dict.fromkeys(key[0] for key in abouts if key in todo):
        try:
            tasks[name] = open_task(name, root, seed=seed, download=download)
        except (ValueError, OSError) as error:
            if datasets:
                raise
            failures[name] = str(error)
            click.echo(f"{name:<12}{error}", err=True)
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for (name, address), about in abouts.items():
        if name not in tasks and (name, address) in todo:
            continue
        measure = partial(
            _measure, encoders[address], tasks, name, device, cache / "features", seed
        )
        try:
            values = keep(results, name, about, measure)
        except (ValueError, OSError) as error:
            failures[f"{name}, {address}"] = str(error)
            click.echo(f"{name:<12}{address}: {error}", err=True)
        else:
            found[name, address] = values
            click.echo(f"{name:<12}{values['score']:6.2f}  {address}", err=True)
    if not found:
        raise ValueError("no data set could be measured: " + "; ".join(failures.values()))
    settings = json.dumps({"data": str(root), "seed": seed, "penalties": len(STRENGTHS)})
    runs = []
    for address, encoder in encoders.items():
        scores = {n: found[n, address]["score"] for n in names if (n, address) in found}
        if len(scores) == len(names) > 1:
            scores[MEAN] = float(np.mean(list(scores.values())))
        place = {"encoder": address, "settings": settings}
        runs.append(Run(Path(address), Result(scores, np.zeros((0, 0))), (), place, encoder.config))
    facts_of: dict[str, dict[str, Any]] = {}
    for (name, address), values in found.items():
        facts_of.setdefault(name, {k: values[k] for k in _FACTS} | {"l2": {}})
        facts_of[name]["l2"][address] = values["l2"]
    result = Transfer(tuple(group_arms(runs)), facts_of, failures)
    _write(out, result, {"encoders": " ".join(addresses), "settings": settings})
    return result


def _measure(
    encoder: Encoder, tasks: Mapping[str, Task], name: str, device: str, kept: Path, seed: int
) -> dict[str, Any]:
    task = tasks[name]
    parts = {"train": task.train, "validation": task.validation, "test": task.test}
    features = {
        part: compute_features(encoder, source, device=device, keep=kept, mirrored=False)
        for part, source in parts.items()
        if source is not None
    }
    on_device = {part: found.to(device) for part, found in features.items()}
    probe = lbfgs_probe(
        on_device["train"],
        on_device["test"],
        validation=on_device.get("validation"),
        metric=METRICS[task.metric],
        seed=seed,
    )
    return {
        "score": probe.scores["lbfgs"],
        "l2": probe.scores["lbfgs_l2"],
        "metric": task.metric,
        "split": task.split,
        "images": {part: len(found.labels) for part, found in features.items()},
        "classes": len(features["train"].classes),
    }


def _write(out: Path, found: Transfer, about: Mapping[str, str]) -> None:
    """Write OUT/transfer.json, OUT/transfer.md, OUT/report.html and its figure."""
    behind = [
        heading("Data sets"),
        table(["", "metric", "images", "classes", "L2 chosen", "split"], _task_rows(found.tasks)),
        note(
            "Frozen features of the centre square at the encoder's size. Logistic regression by "
            f"L-BFGS; the penalty is the best of {len(STRENGTHS)} on the validation part."
        ),
    ]
    if found.failures:
        lines = [f"{which}: {why}" for which, why in found.failures.items()]
        behind = [heading("Not measured"), bullets(lines), *behind]
    write_arms(
        out,
        "transfer",
        found.arms,
        about,
        title="Transfer",
        lead=f"{len(found.arms)} ways of training on {len(found.tasks)} data sets, by linear "
        "probes.",
        what="Percent of each data set's own metric, below",
        plotted=list(found.tasks),
        main=MEAN,
        behind=behind,
        more={"data sets": found.tasks, "failures": found.failures},
    )


def _task_rows(tasks: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    return [
        [
            name,
            task["metric"],
            " + ".join(f"{count:,}" for count in task["images"].values()),
            str(task["classes"]),
            ", ".join(f"{value:.2g}" for value in task["l2"].values()),
            task["split"],
        ]
        for name, task in tasks.items()
    ]


@click.command(epilog=f"\b\nAn ENCODER is one of\n{ENCODER_KINDS}")
@click.argument("encoders", metavar="ENCODER...", nargs=-1, required=True)
@click.option("--data", "root", required=True, type=click.Path(path_type=Path), metavar="ROOT")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Output folder.")
@click.option(
    "--datasets",
    default="",
    metavar="NAME,...",
    help=f"Of {', '.join(DATA_SETS)}; default: those that are in ROOT.",
)
@click.option("--seed", default=0, show_default=True, help="Of the splits that are drawn.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--download", is_flag=True, help="Fetch the data sets that are not there.")
@cache_option
def main(
    encoders: tuple[str, ...],
    root: Path,
    out: Path,
    datasets: str,
    seed: int,
    device: str,
    download: bool,
    cache: Path,
) -> None:
    """Probe frozen encoders on other data sets; ROOT is the folder that torchvision calls root.

    Encoders that differ in the training seed only are one row. Stopped at any moment, the same
    command goes on behind the last finished data set. Writes OUT/transfer.json, OUT/transfer.md
    and OUT/report.html. Exit code 1: some could not be measured.
    """
    try:
        found = transfer(
            encoders,
            root,
            out,
            datasets=[name for name in datasets.split(",") if name],
            cache=cache,
            seed=seed,
            device=device,
            download=download,
        )
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo((out / "transfer.md").read_text(), nl=False)
    if found.failures:
        raise click.ClickException(f"not measured: {'; '.join(found.failures)}")


if __name__ == "__main__":
    main()
