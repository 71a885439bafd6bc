"""One HTML file with its pictures inside: it can be mailed, and asks nothing of the network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np

from ..shards.files import write_atomic
from .figures import confusion_figure, curves_figure, scores_figure
from .probe import Result

_NAMES = {
    "1_shot": "1-shot",
    "5_shot": "5-shot",
    "linear_top1": "linear",
    "linear_top5": "linear, top 5",
    "knn": "kNN",
    "knn_k": "k",
}

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff;
       max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem; text-align: right; border-bottom: 1px solid #d8dee4; }
th:first-child, td:first-child { text-align: left; }
th { font-weight: 600; } td.best { font-weight: 700; }
small, .note { color: #57606a; }
img { max-width: 100%; height: auto; }
img.pixels { image-rendering: pixelated; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
dt { color: #57606a; } dd { margin: 0; overflow-wrap: anywhere; }
@media print { body { margin: 0; } h2, img, table { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class Arm:
    """One way of training: its name and what was measured of it, one result a seed."""

    name: str
    results: tuple[Result, ...]

    def scores(self, name: str) -> list[float]:
        """Return one score of every seed."""
        return [result.scores[name] for result in self.results]


@dataclass(frozen=True)
class Report:
    """What a report shows.

    arms: the first one is what the others are compared with, seed by seed; about: how it was
    made; sheet: PNG of anchors and positives; main: the score to plot and compare by.
    """

    title: str
    lead: str
    arms: Sequence[Arm]
    classes: Sequence[str]
    about: Mapping[str, str]
    main: str = "linear_top1"
    sheet: bytes | None = None
    notes: Sequence[str] = field(default_factory=tuple)


def write_report(path: Path, report: Report) -> None:
    """Write the report as one HTML file."""
    parts = [
        f"<h1>{escape(report.title)}</h1><p>{escape(report.lead)}</p>",
        "<h2>Accuracy</h2>",
        _table(report.arms),
        *(f'<p class="note">{escape(note)}</p>' for note in report.notes),
    ]
    if len(report.arms) > 1:
        parts += [_comparison(report), _scores_picture(report)]
    curves = {arm.name: arm.results[0].curves for arm in report.arms if arm.results[0].curves}
    if curves:
        parts += ["<h2>Training</h2>", _picture(curves_figure(curves), "training curves")]
    if report.sheet is not None:
        parts += [
            "<h2>Anchors and positives</h2><p>Each row: an anchor, then its positives.</p>",
            _picture(report.sheet, "anchors and their positives", "pixels"),
        ]
    best = max(report.arms, key=lambda arm: float(np.mean(arm.scores(report.main))))
    confusion = np.sum([result.confusion for result in best.results], axis=0)
    parts += [
        f"<h2>Confusion matrix: {escape(best.name)}, linear probe, percent of the true class</h2>",
        _picture(confusion_figure(confusion, report.classes), "confusion matrix"),
        "<h2>How it was made</h2><dl>",
        *(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in report.about.items()),
        "</dl>",
    ]
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{_STYLE}</style></head><body>"
    )
    write_atomic(path, (head + "\n".join(parts) + "</body></html>\n").encode())


def score_name(name: str) -> str:
    """Return a score's name for people."""
    return _NAMES.get(name, name.replace("_", " "))


def _table(arms: Sequence[Arm]) -> str:
    names = list(arms[0].results[0].scores)
    ordered = [name for name in _NAMES if name in names]
    ordered += [name for name in names if name not in _NAMES]
    best = {name: max(float(np.mean(arm.scores(name))) for arm in arms) for name in ordered}
    head = "".join(f"<th>{escape(score_name(name))}</th>" for name in ordered)
    rows = []
    for arm in arms:
        cells = []
        for name in ordered:
            values = arm.scores(name)
            mean = float(np.mean(values))
            if name == "knn_k":
                text = ", ".join(f"{value:.0f}" for value in values)
            else:
                text = f"{mean:.1f}"
                if len(values) > 1:
                    text += f" <small>± {np.std(values, ddof=1):.1f}</small>"
            strong = len(arms) > 1 and name != "knn_k" and mean == best[name]
            cells.append(f'<td class="best">{text}</td>' if strong else f"<td>{text}</td>")
        rows.append(f"<tr><td>{escape(arm.name)}</td>{''.join(cells)}</tr>")
    seeds = len(arms[0].results)
    of = f"mean and standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    return (
        f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead><tbody>'
        f"{''.join(rows)}</tbody></table></div>"
        f'<p class="note">Percent of held-out images; {of}.</p>'
    )


def _comparison(report: Report) -> str:
    """Say for each arm how it differs from the first one, seed by seed."""
    first, *others = report.arms
    base = np.array(first.scores(report.main))
    lines = []
    for arm in others:
        gain = np.array(arm.scores(report.main)) - base
        each = ", ".join(f"{value:+.1f}" for value in gain)
        lines.append(
            f"<li>{escape(arm.name)}: {gain.mean():+.1f} points of {score_name(report.main)} "
            f"against {escape(first.name)} ({each} in the seeds; better in {(gain > 0).sum()} of "
            f"{len(gain)})</li>"
        )
    return f"<ul>{''.join(lines)}</ul>"


def _scores_picture(report: Report) -> str:
    label = f"{score_name(report.main)} accuracy, percent; a dot is a seed, a line the mean"
    scores = {arm.name: arm.scores(report.main) for arm in report.arms}
    return _picture(scores_figure(scores, label), label)


def _picture(png: bytes, text: str, kind: str = "") -> str:
    data = base64.b64encode(png).decode()
    return f'<img class="{kind}" alt="{escape(text)}" src="data:image/png;base64,{data}">'
