"""The report on encoders: arms of several seeds side by side, in one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import significance
from .figures import confusion_figure, curves_figure, scores_figure
from .page import bullets, facts, heading, note, picture, table, write_page
from .probe import Result

_NAMES = {
    "1_shot": "1-shot",
    "5_shot": "5-shot",
    "linear_top1": "linear",
    "linear_top5": "linear, top 5",
    "lbfgs": "linear, L-BFGS",
    "lbfgs_l2": "L2 of L-BFGS",
    "knn": "kNN",
    "knn_k": "k of kNN",
    "knn_t": "its temperature",
}
_CHOSEN = ("lbfgs_l2", "knn_k", "knn_t")  # settings, of which more is not better


@dataclass(frozen=True)
class Arm:
    """One way of training: its name and what was measured of it, one result a seed.

    seeds: which ones; arms are tested against each other in pairs of equal seeds.
    """

    name: str
    results: tuple[Result, ...]
    seeds: tuple[int, ...] = ()

    def scores(self, name: str) -> list[float]:
        """Return one score of every seed."""
        return [result.scores[name] for result in self.results]


@dataclass(frozen=True)
class Report:
    """What a report shows.

    arms: the first one is what the others are compared with, seed by seed; about: how it was
    made; sheets: PNGs of small images, by what they show; main: the score to plot and compare by.
    """

    title: str
    lead: str
    arms: Sequence[Arm]
    classes: Sequence[str]
    about: Mapping[str, str]
    main: str = "linear_top1"
    sheets: Mapping[str, bytes] = field(default_factory=dict)
    notes: Sequence[str] = field(default_factory=tuple)


def write_report(path: Path, report: Report) -> None:
    """Write the report as one HTML file, and its figures as files of `figures` beside it."""
    keep = path.parent / "figures"
    parts = [
        heading("Accuracy"),
        table(*score_rows(report.arms)),
        note(f"Percent of held-out images; {spread_note(report.arms)}."),
        *map(note, report.notes),
        *_chosen(report.arms),
    ]
    if len(report.arms) > 1:
        label = f"{score_name(report.main)} accuracy, percent; a dot is a seed, a line the mean"
        scores = {arm.name: arm.scores(report.main) for arm in report.arms}
        parts += [
            comparison(report.arms, report.main),
            picture(scores_figure(scores, label), label, keep, "scores"),
        ]
    curves = {arm.name: arm.results[0].curves for arm in report.arms if arm.results[0].curves}
    if curves:
        parts += [
            heading("Training"),
            picture(curves_figure(curves), "training curves", keep, "curves"),
            *[note("Each of the first seed.")] * any(len(a.results) > 1 for a in report.arms),
        ]
    for number, (text, sheet) in enumerate(report.sheets.items()):
        parts += [heading(text), picture(sheet, text, keep, f"sheet{number}")]
    best = max(report.arms, key=lambda arm: float(np.mean(arm.scores(report.main))))
    confusion = np.sum([result.confusion for result in best.results], axis=0)
    parts += [
        heading(f"Confusion matrix: {best.name}, linear probe, percent of the true class"),
        picture(confusion_figure(confusion, report.classes), "confusion matrix", keep, "confusion"),
        heading("How it was made"),
        facts(report.about),
    ]
    write_page(path, report.title, report.lead, parts)


def score_name(name: str) -> str:
    """Return a score's name for people."""
    return _NAMES.get(name, name.replace("_", " "))


def score_rows(arms: Sequence[Arm]) -> tuple[list[str], list[list[str]]]:
    """Return a table's head and rows: an arm a row, mean and deviation over its seeds a cell.

    Of encoders measured at different times, the scores that all of them have; settings that a probe
    chose are no scores. With several arms a cell that is the best of its column ends with "*".
    """
    names = [name for name in _common(arms) if name not in _CHOSEN]
    ordered = [name for name in _NAMES if name in names]
    ordered += [name for name in names if name not in _NAMES]
    best = {name: max(float(np.mean(arm.scores(name))) for arm in arms) for name in ordered}
    rows = []
    for arm in arms:
        cells = [arm.name]
        for name in ordered:
            values = arm.scores(name)
            mean = float(np.mean(values))
            text = f"{mean:.1f}"
            if len(values) > 1:
                text += f" ± {np.std(values, ddof=1):.1f}"
            cells.append(text + "*" * (len(arms) > 1 and mean == best[name]))
        rows.append(cells)
    return ["", *map(score_name, ordered)], rows


def _common(arms: Sequence[Arm]) -> list[str]:
    found = arms[0].results[0].scores
    return [name for name in found if all(name in r.scores for arm in arms for r in arm.results)]


def _chosen(arms: Sequence[Arm]) -> list[str]:
    """A table of the settings that the probes chose, seed by seed; nothing where there are none."""
    names = [name for name in _common(arms) if name in _CHOSEN]
    if not names:
        return []
    rows = [
        [arm.name, *(", ".join(f"{value:.2g}" for value in arm.scores(name)) for name in names)]
        for arm in arms
    ]
    head = ["Chosen on a validation split", *map(score_name, names)]
    return [table(head, rows)]


def spread_note(arms: Sequence[Arm]) -> str:
    """Return in words what a cell of `score_rows` is."""
    counts = sorted({len(arm.results) for arm in arms})
    if counts == [1]:
        return "one seed"
    return f"mean and standard deviation of {' or '.join(map(str, counts))} seeds"


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table for a terminal, which is Markdown too; bold where a cell ends with "*"."""
    bold = [[f"**{c[:-1]}**" if c.endswith("*") else c for c in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *bold, strict=True)]
    lines = [head, ["-" * max(3, width) for width in widths], *bold]
    padded = ([c.ljust(max(3, w)) for c, w in zip(line, widths, strict=True)] for line in lines)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in padded)


def comparison(arms: Sequence[Arm], main: str) -> str:
    """Say for each arm how it differs from the first one, seed by seed, and whether it is noise.

    main: the score to compare by. Returns HTML.
    """
    first, *others = arms
    key = (len(first.results), first.seeds)
    paired = [arm for arm in others if (len(arm.results), arm.seeds) == key]
    found = significance.paired_differences(
        first.scores(main), [arm.scores(main) for arm in paired]
    )
    lines = []
    for arm, difference in zip(paired, found, strict=True):
        each = ", ".join(f"{value:+.1f}" for value in difference.each)
        verdict = "no test with one seed"
        if len(difference.each) > 1:
            beyond = "beyond noise" if difference.beyond_noise else "not beyond noise"
            verdict = f"p = {difference.p:.3f}, {beyond}"
        lines.append(
            f"{arm.name}: {np.mean(difference.each):+.1f} points of {score_name(main)} "
            f"against {first.name} ({each} in the seeds; better in "
            f"{sum(value > 0 for value in difference.each)} of {len(difference.each)}); {verdict}"
        )
    lines += [
        f"{arm.name}: seeds {_seeds(arm)} against {_seeds(first)} of {first.name}: no pairs to test"
        for arm in others
        if arm not in paired
    ]
    named = f"Beyond noise: p < {significance.LEVEL} by a {significance.NAME}."
    return bullets(lines) + note(named)


def _seeds(arm: Arm) -> str:
    return ", ".join(map(str, arm.seeds or range(len(arm.results))))
