"""Pictures for the report, each as the bytes of a PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Curves = Sequence[Mapping[str, float]]

_PANELS = {
    "contrastive": "Contrastive loss",
    "positive": "Positive term",
    "embedding_std": "Embedding std (1 spread, 0 collapsed)",
    "lr": "Learning rate",
}


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144)
    return buffer.getvalue()


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def curves_figure(runs: Mapping[str, Curves]) -> bytes:
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
                axes.plot(*zip(*points, strict=True), label=name, color=f"C{color}", linewidth=1.5)
        axes.set_title(_PANELS[panel], fontsize=10, loc="left")
        axes.set_xlabel("epoch", fontsize=9)
        _plain(axes)
        if number == 0 and len(runs) > 1:
            axes.legend(fontsize=8, frameon=False)
    return _png(figure)


def scores_figure(scores: Mapping[str, Sequence[float]], label: str) -> bytes:
    """Plot every seed's score of each arm as a dot, and the arm's mean as a line.

    scores: by arm, one number a seed; label: what they are.
    """
    figure = Figure(figsize=(7, 0.55 * len(scores) + 1.0), layout="constrained")
    axes = figure.add_subplot()
    for row, values in enumerate(scores.values()):
        axes.plot(values, [row] * len(values), "o", color=f"C{row}", alpha=0.6)
        axes.plot([np.mean(values)] * 2, [row - 0.3, row + 0.3], color=f"C{row}", linewidth=2.5)
    axes.set_yticks(range(len(scores)), list(scores))
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.grid(axis="x", alpha=0.3)
    _plain(axes)
    return _png(figure)


def confusion_figure(confusion: np.ndarray, classes: Sequence[str]) -> bytes:
    """Draw a confusion matrix, (C, C) counts with the true classes in rows, as shares of rows."""
    total = confusion.sum(axis=1, keepdims=True)
    shares = confusion / np.maximum(total, 1)
    side = min(9.0, 2.5 + 0.4 * len(classes))
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
    return _png(figure)
