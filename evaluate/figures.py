"""Figures of the reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Curves = Sequence[Mapping[str, float]]

_PHONE = 4.9  # inches: the widest figure that a phone shows whole, at `page`'s scale
_NAME = 24  # characters of a line of an arm's name beside its dots

_PANELS = {
    "contrastive": "Contrastive loss",
    "positive": "Positive term",
    "embedding_std": "Embedding std (1 spread, 0 collapsed)",
    "lr": "Learning rate",
}


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def curves_figure(runs: Mapping[str, Curves]) -> Figure:
    """Plot what training logged, one line a run, one panel a quantity, against epochs.

    runs: by name, the rows of metrics.jsonl.
    """
    logged = {name for rows in runs.values() for row in rows for name in row}
    panels = [name for name in _PANELS if name in logged]
    figure = Figure(figsize=(9, 2.6 * -(-len(panels) // 2)), layout="constrained")
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(-(-len(panels) // 2), 2, number + 1)
        for color, (name, rows) in enumerate(runs.items()):
            points = [(row["epoch"], row[panel]) for row in rows if panel in row]
            if points:
                mark = "o" if len(points) < 10 else ""  # a line through one point is none
                axes.plot(*zip(*points, strict=True), mark, ls="-", label=name, c=f"C{color}", ms=4)
        axes.set_title(_PANELS[panel], fontsize=10, loc="left")
        axes.set_xlabel("epoch", fontsize=9)
        axes.locator_params(nbins=6)
        _plain(axes)
        if number == 0 and len(runs) > 1:
            axes.legend(fontsize=8, frameon=False)
    return figure


def scores_figure(scores: Mapping[str, Sequence[float]], label: str) -> Figure:
    """Plot every seed's score of each arm as a dot, and the arm's mean as a line.

    scores: by arm, one number a seed; label: what they are.
    """
    names = [fill(name, _NAME) for name in scores]
    each = max(0.45, 0.2 * max(name.count("\n") + 1 for name in names))
    figure = Figure(figsize=(_PHONE, each * len(scores) + 0.9), layout="constrained")
    axes = figure.add_subplot()
    for row, values in enumerate(scores.values()):
        axes.plot(values, [row] * len(values), "o", color=f"C{row}", alpha=0.6)
        axes.plot([np.mean(values)] * 2, [row - 0.3, row + 0.3], color=f"C{row}", linewidth=2.5)
    axes.set_yticks(range(len(scores)), names)
    axes.invert_yaxis()
    figure.supxlabel(fill(label, 60), fontsize=9)
    axes.grid(axis="x", alpha=0.3)
    _plain(axes)
    return figure


def groups_figure(scores: Mapping[str, Mapping[str, Sequence[float]]], label: str) -> Figure:
    """Plot scores of several arms by group, a line a group, a dot a seed, a bar an arm's mean.

    scores: by arm and group, one number a seed; label: what they are.
    """
    groups = list(dict.fromkeys(group for of_arm in scores.values() for group in of_arm))
    figure = Figure(
        figsize=(_PHONE, 0.42 * len(groups) + 0.2 * len(scores) + 1), layout="constrained"
    )
    axes = figure.add_subplot()
    step = 0.7 / max(1, len(scores))
    for number, (arm, of_arm) in enumerate(scores.items()):
        shift = (number - (len(scores) - 1) / 2) * step
        rows = [groups.index(group) + shift for group in of_arm]
        means = [float(np.mean(values)) for values in of_arm.values()]
        color = f"C{number}"
        name = fill(arm, 60)
        axes.plot(means, rows, "|", color=color, markersize=8, markeredgewidth=2, label=name)
        for row, values in zip(rows, of_arm.values(), strict=True):
            axes.plot(values, [row] * len(values), "o", color=color, alpha=0.5, markersize=4)
    axes.set_yticks(range(len(groups)), groups)
    axes.invert_yaxis()
    axes.set_xlabel(label, fontsize=9)
    axes.grid(axis="x", alpha=0.3)
    _plain(axes)
    if len(scores) > 1:
        figure.legend(loc="outside lower center", fontsize=8, frameon=False)
    return figure


def sweep_figure(panels: Mapping[str, Mapping[float, Sequence[float]]], label: str) -> Figure:
    """Plot a score against a setting, one panel a setting: a dot a seed, mean and deviation.

    panels: by setting and its value, one number a seed; label: what they are.
    """
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.0 * lines), layout="constrained")
    shared = None
    for number, (name, scores) in enumerate(panels.items()):
        axes = figure.add_subplot(lines, columns, number + 1, sharey=shared)
        shared = shared or axes
        means = [float(np.mean(values)) for values in scores.values()]
        spread = [float(np.std(v, ddof=1)) if len(v) > 1 else 0.0 for v in scores.values()]
        places = list(scores)
        axes.errorbar(places, means, spread, marker="_", markersize=12, capsize=3, linewidth=1.5)
        for place, values in scores.items():
            axes.plot([place] * len(values), values, "o", color="C0", alpha=0.5, markersize=4)
        if min(places) > 0 and max(places) > 20 * min(places):
            axes.set_xscale("log")
        axes.set_xlabel(name)
        axes.grid(axis="y", alpha=0.3)
        _plain(axes)
    figure.supylabel(f"{label}; bars: deviation", fontsize=9)
    return figure


def confusion_figure(confusion: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix, (C, C) counts with the true classes in rows, as shares of rows."""
    total = confusion.sum(axis=1, keepdims=True)
    shares = confusion / np.maximum(total, 1)
    side = min(9.0, 1.2 + 0.36 * len(classes) + 0.07 * max(map(len, classes)))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= 30:
        axes.set_xticks(range(len(classes)), classes, rotation=90 if len(classes[0]) > 1 else 0)
        axes.set_yticks(range(len(classes)), classes)
        for row, column in np.ndindex(confusion.shape):
            if shares[row, column] >= 0.005:
                color = "white" if shares[row, column] > 0.5 else "black"
                text = f"{100 * shares[row, column]:.0f}"
                axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return figure


def histogram_figure(values: Mapping[str, np.ndarray], label: str) -> Figure:
    """Draw the distributions of several quantities over each other, each with its mean.

    values: by name, numbers of one scale; label: what they are.
    """
    figure = Figure(figsize=(_PHONE, 3.2), layout="constrained")
    axes = figure.add_subplot()
    low, high = (np.quantile(np.concatenate([*values.values()]), q) for q in (0.001, 0.999))
    bins = np.linspace(low, max(high, low + 1e-6), 61).tolist()
    for number, (name, found) in enumerate(values.items()):
        color = f"C{number}"
        axes.hist(found, bins, density=True, histtype="stepfilled", alpha=0.25, color=color)
        axes.hist(found, bins, density=True, histtype="step", color=color, label=name)
        axes.axvline(float(np.mean(found)), color=color, linewidth=1.5, linestyle="--")
    axes.set_xlabel(f"{label}; dashed: the mean")
    axes.set_yticks([])
    figure.legend(loc="outside lower center", fontsize=8, frameon=False)
    _plain(axes)
    axes.spines["left"].set_visible(False)
    return figure


def scatter_figure(
    panels: Mapping[str, np.ndarray], labels: np.ndarray, classes: Sequence[str]
) -> Figure:
    """Draw points in the plane, coloured by class, one panel a way of laying them out.

    panels: by name, (N, 2); labels: (N,) in 0..C-1.
    """
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 4.6 * lines + 0.4), layout="constrained")
    colors = colormaps["tab10" if len(classes) <= 10 else "hsv"].resampled(len(classes))
    for number, (name, points) in enumerate(panels.items()):
        axes = figure.add_subplot(lines, columns, number + 1)
        for label, title in enumerate(classes):
            x, y = points[labels == label].T
            axes.scatter(x, y, s=5, color=colors(label), linewidths=0, alpha=0.7, label=title)
        axes.set_title(name, fontsize=10, loc="left")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    if len(classes) <= 20:
        handles = figure.axes[0].get_legend_handles_labels()
        figure.legend(
            *handles, loc="outside lower center", ncols=5, fontsize=8, frameon=False, markerscale=3
        )
    return figure
