"""One table of encoders: as JSON, as text, and as a page with a figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..shards.files import write_atomic
from .about import commit, hardware
from .figures import groups_figure
from .page import facts, heading, note, picture, table, write_page
from .report import Arm, comparison, score_rows, spread_note, text_table


def write_arms(
    out: Path,
    stem: str,
    arms: Sequence[Arm],
    about: Mapping[str, str],
    *,
    title: str,
    lead: str,
    what: str,
    plotted: Sequence[str],
    main: str,
    behind: Sequence[str],
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write STEM.json, STEM.md, report.html and figures/STEM.* into `out`.

    what: what the numbers are, in words; plotted: scores to draw, where an arm has them; main: the
    score by which arms are compared, if all have it; behind: parts of the page behind the figure;
    more: further values of the JSON.
    """
    made = {**about, "commit": commit(), "hardware": hardware()}
    scores = {
        arm.name: {"seeds": arm.seeds, "scores": [r.scores for r in arm.results]} for arm in arms
    }
    values = {"arms": scores, **(more or {}), "about": made}
    write_atomic(out / f"{stem}.json", (json.dumps(values, indent=2) + "\n").encode())
    head, rows = score_rows(arms)
    write_atomic(out / f"{stem}.md", text_table(head, rows).encode())
    drawn = {
        arm.name: {n: arm.scores(n) for n in plotted if all(n in r.scores for r in arm.results)}
        for arm in arms
    }
    label = "percent; a dot is a seed, a bar the mean"
    parts = [heading("Scores"), table(head, rows), note(f"{what}; {spread_note(arms)}.")]
    if len(arms) > 1 and all(main in r.scores for arm in arms for r in arm.results):
        parts.append(comparison(arms, main))
    parts += [
        picture(groups_figure(drawn, label), "scores of every seed", out / "figures", stem),
        *behind,
        heading("How it was made"),
        facts(made),
    ]
    write_page(out / "report.html", title, lead, parts)
