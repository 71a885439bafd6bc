"""Several training runs side by side: one table and one plot."""

from __future__ import annotations

import io
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ..shards.files import write_atomic

# name in the run's files: heading of its column, and digits behind the point
_COLUMNS = {
    "online_knn": ("online kNN, %", 1),
    "contrastive": ("contrastive loss", 3),
    "positive": ("positive term", 3),
    "embedding_std": ("embedding std", 3),
    "tuples_per_second": ("tuples/s", 0),
}


def write_comparison(out: Path, runs: Mapping[str, Sequence[Path]]) -> str:
    """Write `compare.md`, `compare.json` and `compare.png` into `out`; return the table.

    runs: by arm, the output folders of its seeds. A cell is the mean over seeds of the last value
    logged, and the sample's standard deviation where there are several. The plot shows the online
    kNN where there was one, else the loss, whose scale is each method's own.
    """
    curves = {arm: [_curves(run) for run in places] for arm, places in runs.items()}
    last = {
        arm: {
            name: [seed[name][-1][1] for seed in seeds]
            for name in _COLUMNS
            if all(name in seed for seed in seeds)
        }
        for arm, seeds in curves.items()
    }
    table = _table(last)
    write_atomic(out / "compare.md", table.encode())
    write_atomic(out / "compare.json", (json.dumps(last, indent=2) + "\n").encode())
    write_atomic(out / "compare.png", _plot(curves))
    return table


def _curves(run: Path) -> dict[str, list[tuple[float, float]]]:
    """What a run logged: by name, (epoch, value)."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for file in ("metrics.jsonl", "knn.jsonl"):
        if (run / file).is_file():
            for line in (run / file).read_text().splitlines():
                row = json.loads(line)
                for name in row.keys() - {"epoch", "step"}:
                    curves.setdefault(name, []).append((row["epoch"], row[name]))
    if not curves:
        raise ValueError(f"{run} has logged nothing; --log-every is larger than its steps")
    return curves


def _table(last: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    names = [name for name in _COLUMNS if any(name in values for values in last.values())]
    rows = [["arm", "seeds", *(_COLUMNS[name][0] for name in names)]]
    rows.append(["---"] * len(rows[0]))
    for arm, values in last.items():
        seeds = max(len(found) for found in values.values())
        rows.append([arm, str(seeds), *(_cell(values.get(n), _COLUMNS[n][1]) for n in names)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cell(values: Sequence[float] | None, digits: int) -> str:
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def _plot(curves: Mapping[str, Sequence[Mapping[str, Sequence[tuple[float, float]]]]]) -> bytes:
    """A line for each arm's mean over seeds, in a band from the least seed to the largest."""
    name = (
        "online_knn"
        if all("online_knn" in s for seeds in curves.values() for s in seeds)
        else "loss"
    )
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for color, (arm, seeds) in enumerate(curves.items()):
        epochs = [epoch for epoch, _ in seeds[0][name]]
        values = list(zip(*([v for _, v in seed[name]] for seed in seeds), strict=False))
        epochs = epochs[: len(values)]
        means = [statistics.fmean(found) for found in values]
        axes.plot(
            epochs, means, color=f"C{color}", label=arm, marker="." if len(means) < 20 else ""
        )
        low, high = [min(found) for found in values], [max(found) for found in values]
        axes.fill_between(epochs, low, high, color=f"C{color}", alpha=0.2, linewidth=0)
    axes.set_xlabel("epoch")
    axes.set_ylabel("online kNN, %" if name == "online_knn" else "loss")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144)
    return buffer.getvalue()
