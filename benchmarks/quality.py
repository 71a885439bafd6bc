"""Quality against steps: how few steps of which scheduler make positives as good as many do.

Positives are measured against images that the anchors are not among, in pixels: the kernel distance
of the two sets, and how often the nearest images' label is the anchor's.

    clsp fit --recipe fit-digits --out runs/digits
    python -m benchmarks.quality --model runs/digits --plot docs/steps.png
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from clsp.evaluate.distances import kernel_distance
from clsp.evaluate.features import Features
from clsp.evaluate.knn import knn_predict
from clsp.generate.config import GenerateConfig
from clsp.generate.denoiser import DiffusionModel
from clsp.generate.diffusion import open_model
from clsp.generate.records import BatchSampler
from clsp.recipes import progress
from clsp.shards.images import load_pixels, open_images

from .common import report

SCHEDULERS = get_args(get_type_hints(GenerateConfig)["scheduler"])
K = 5  # neighbours that say a positive's label


def measure(
    positives: np.ndarray, labels: Tensor, known: Features, classes: Sequence[str]
) -> dict[str, float]:
    """Return kernel distance and label agreement in percent, with their 95 % intervals' halves.

    positives: (N, S, S, 3) uint8; labels: (N,) of their anchors; known: real images.
    """
    found = _pixels(positives)
    distance = kernel_distance(known.plain, found)
    features = Features(found, found, labels, tuple(classes))
    agrees = (knn_predict(known, features, K) == labels).double().mean().item()
    return {
        "kernel": distance.value,
        "kernel_error": distance.high - distance.value,
        "agreement": 100 * agrees,
        "agreement_error": 196 * math.sqrt(agrees * (1 - agrees) / len(labels)),
    }


def sweep(
    config: GenerateConfig,
    model: DiffusionModel,
    images: str,
    known: str,
    schedulers: Sequence[str],
    steps: Sequence[int],
    device: str,
) -> dict[str, Any]:
    """Return the measures of every scheduler and number of steps, and of the anchors themselves."""
    source, rest = open_images(images), open_images(known)
    if source.labels is None or rest.labels is None or not source.classes or not rest.classes:
        raise ValueError(f"images {images} and {known}: both need labels")
    anchors = load_pixels(source, size=model.image_size)
    keys = [source.key(index) for index in range(len(source))]
    labels, classes = torch.from_numpy(source.labels).long(), source.classes
    real = _pixels(load_pixels(rest, size=model.image_size))
    bank = Features(real, real, torch.from_numpy(rest.labels).long(), tuple(rest.classes))
    rows: list[dict[str, Any]] = []
    with progress(len(schedulers) * len(steps), "quality", "setting") as bar:
        for scheduler in schedulers:
            for count in steps:
                setting = replace(config, scheduler=scheduler, steps=count)
                sampler = BatchSampler(setting, model, torch.device(device), "the model")
                parts = [
                    sampler.sample(anchors[n : n + config.batch], keys[n : n + config.batch], None)
                    for n in range(0, len(anchors), config.batch)
                ]
                made = np.concatenate([images for images, _ in parts])  # (N, K, S, S, 3)
                own = labels.repeat_interleave(config.positives)
                found = measure(made.reshape(-1, *made.shape[2:]), own, bank, classes)
                rows.append({"scheduler": scheduler, "steps": count, **found})
                bar.update()
    return {"anchors": measure(anchors, labels, bank, classes), "rows": rows}


def as_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the measures as a Markdown table: kernel distance and agreement, a column a step."""
    steps = sorted({row["steps"] for row in rows})
    cells = {(row["scheduler"], row["steps"]): row for row in rows}
    lines = [f"| | {' | '.join(map(str, steps))} |", "| --- " * (len(steps) + 1) + "|"]
    for name in dict.fromkeys(row["scheduler"] for row in rows):
        of_steps = [cells[name, count] for count in steps]
        texts = [f"{row['kernel']:.4f}, {row['agreement']:.0f} %" for row in of_steps]
        lines.append(f"| {name} | {' | '.join(texts)} |")
    return "\n".join(lines)


def plot(rows: Sequence[Mapping[str, Any]], anchors: Mapping[str, float]) -> Figure:
    """Plot both measures against steps, a line a scheduler; the anchors' own are dashed."""
    figure = Figure(figsize=(9.5, 3.6), layout="constrained")
    panels = (
        ("kernel", "Kernel distance to real images (lower is better)"),
        ("agreement", "Positives with their anchor's label, %"),
    )
    for number, (name, title) in enumerate(panels):
        axes = figure.add_subplot(1, 2, number + 1)
        for color, scheduler in enumerate(dict.fromkeys(row["scheduler"] for row in rows)):
            of_it = [row for row in rows if row["scheduler"] == scheduler]
            steps = [row["steps"] for row in of_it]
            values, errors = (np.array([row[n] for row in of_it]) for n in (name, f"{name}_error"))
            axes.plot(steps, values, "o-", color=f"C{color}", label=scheduler, markersize=4)
            low = (values - errors).clip(min=1e-4)  # a squared distance, on a log scale
            axes.fill_between(steps, low, values + errors, color=f"C{color}", alpha=0.1)
        axes.axhline(anchors[name], color="grey", linestyle="--", linewidth=1)
        axes.set_xscale("log")
        if name == "kernel":
            axes.set_yscale("log")
            axes.set_ylim(bottom=min(abs(anchors[name]), *(abs(row[name]) for row in rows)) / 2)
        axes.set_xticks(steps, [str(count) for count in steps])
        axes.minorticks_off()
        axes.set_xlabel("steps")
        axes.set_title(title, fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.text(steps[0], anchors[name], "anchors", fontsize=8, color="grey", va="bottom")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right", fontsize=9, frameon=False)
    return figure


def _pixels(images: np.ndarray) -> Tensor:
    """(N, S, S, 3) uint8 -> (N, F) in [-1, 1]."""
    return torch.from_numpy(images).flatten(1).float() / 127.5 - 1


@click.command()
@click.option("--model", required=True, help="Of the images' kind; see above.")
@click.option("--images", default="digits:test", show_default=True, help="Anchors.")
@click.option("--known", default="digits:train", show_default=True, help="Real images beside them.")
@click.option("--positives", default=1, show_default=True)
@click.option("--schedulers", default=",".join(SCHEDULERS), show_default=True)
@click.option("--steps", default="5,10,20,50,100", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--plot", "plot_to", type=click.Path(path_type=Path), help="A picture of it.")
@click.option("--out-name", default="quality", show_default=True)
def main(
    model: str,
    images: str,
    known: str,
    positives: int,
    schedulers: str,
    steps: str,
    device: str,
    plot_to: Path | None,
    out_name: str,
) -> None:
    """Measure positives of every scheduler at every number of steps."""
    opened = open_model(model, device)
    config = GenerateConfig(positives=positives, batch=128, site=opened.site)
    counts = [int(count) for count in steps.split(",")]
    found = sweep(config, opened, images, known, schedulers.split(","), counts, device)
    report(out_name, {"w": config.w, "eta": config.eta, **found})
    print(as_table(found["rows"]))
    if plot_to:
        plot(found["rows"], found["anchors"]).savefig(plot_to, dpi=130)


if __name__ == "__main__":
    main()
