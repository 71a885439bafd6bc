"""`clsp evaluate`: encoders and labelled images in, numbers and reports out.

Without a command's name it is `clsp evaluate probe`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..lazy import LazyGroup
from ..recipes import (
    announce,
    build_config,
    cache_option,
    config_options,
    recipe_option,
)
from .config import ENCODER_KINDS, EvaluateConfig

if TYPE_CHECKING:
    from .probe import Result

RECIPES = Path(__file__).parent / "recipes"


ENCODERS = f"\b\nAn encoder is one of\n{ENCODER_KINDS}"  # \b: keep these lines
# name: (module, attribute, one line for `clsp evaluate --help`)
_COMMANDS: dict[str, tuple[str, str, str]] = {
    "compare": ("clsp.evaluate.compare", "main", "Put evaluated encoders side by side."),
    "transfer": ("clsp.evaluate.transfer", "main", "Probe encoders on twelve other data sets."),
    "finetune": ("clsp.evaluate.finetune", "main", "Train whole encoders with few labels."),
    "representation": ("clsp.evaluate.representation", "main", "Look into an encoder's layers."),
    "sweep": ("clsp.sweep", "main", "The paper's ablations: every stage for each value."),
    "positives": ("clsp.evaluate.audit", "main", "Measure and score a set's positives."),
}


@click.group(cls=LazyGroup, lazy=_COMMANDS, default="probe")
def main() -> None:
    """Measure encoders and positives.

    `clsp evaluate --encoder ...` is short for `clsp evaluate probe --encoder ...`.
    """


@main.command(epilog=ENCODERS)
@click.option("--encoder", required=True, help="OUT/encoder of a run, or any other: see below.")
@click.option("--train", required=True, help="Labelled images to fit the probes on.")
@click.option("--test", required=True, help="Labelled images to test on.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Output folder.")
@click.option("--set", "address", help="The shard set it was trained on: shown in the report.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--download", is_flag=True, help="Fetch the image data set if it is not there.")
@cache_option
@recipe_option(RECIPES)
@config_options(EvaluateConfig)
def probe(
    encoder: str,
    train: str,
    test: str,
    out: Path,
    address: str | None,
    device: str,
    download: bool,
    cache: Path,
    **options: Any,
) -> None:
    """Measure an encoder: linear probe, few-shot, kNN.

    Writes OUT/results.json and OUT/report.html. Features are computed once and kept in the cache.
    """
    config = build_config(EvaluateConfig, options)
    places = {"encoder": encoder, "train": train, "test": test, "set": address or "none"}
    try:
        result = evaluate(config, places, out, device=device, download=download, cache=cache)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    for name, value in result.scores.items():
        click.echo(f"{name:<12}{value:6.2f}")


def evaluate(
    config: EvaluateConfig,
    places: dict[str, str],
    out: Path,
    *,
    cache: Path,
    device: str = "auto",
    download: bool = False,
) -> Result:
    """Probe one encoder and write `results.json` and `report.html` into `out`.

    places: "encoder" (its folder), "train" and "test" (image sources), "set" (a shard set or
    "none"). Raises ValueError for what cannot be opened, and for images without labels.
    """
    import torch

    from ..shards.files import write_atomic
    from ..shards.images import open_images
    from ..shards.store import open_set
    from .about import commit, hardware
    from .audit import set_sheets
    from .encoders import open_encoder
    from .features import compute_features
    from .neighbours import neighbours_sheet
    from .probe import probe_encoder
    from .report import Arm, Report, write_report

    opened = open_encoder(places["encoder"])
    sources = [open_images(places[part], download=download) for part in ("train", "test")]
    shards = None if places["set"] == "none" else open_set(places["set"])
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    announce(config, out / "config.json")
    train, test = (
        compute_features(opened, source, device=device, keep=cache / "features", mirrored=mirrored)
        for source, mirrored in zip(sources, (config.flip, False), strict=True)
    )
    result = probe_encoder(
        train.to(device), test.to(device), config, read_curves(Path(places["encoder"]).parent)
    )
    about = {
        **places,
        "set's id": shards.id if shards else "none",
        "encoder's sha256": opened.sha256,
        "images": f"{len(train.labels):,} to fit, {len(test.labels):,} to test",
        "settings": json.dumps(asdict(config)),
        "training": json.dumps(opened.config),
        "commit": commit(),
        "hardware": hardware(),
    }
    sheets = set_sheets(shards) if shards else {}
    sheets["Ten test images and their nearest training images, one row each"] = neighbours_sheet(
        train, test, (sources[0], sources[1]), opened.image_size
    )
    values = {
        "scores": result.scores,
        "confusion": result.confusion.tolist(),
        "classes": test.classes,
        "about": about,
    }
    write_atomic(out / "results.json", (json.dumps(values, indent=2) + "\n").encode())
    name = opened.config["method"]
    if "positive" in opened.config:  # it is one of ours
        name += f", third view {opened.config['positive']}, {opened.config['epochs']} epochs"
    report = Report(
        title="Encoder evaluation",
        lead=f"{places['encoder']}: {name}.",
        arms=[Arm(name, (result,))],
        classes=test.classes,
        about=about,
        sheets=sheets,
    )
    write_report(out / "report.html", report)
    return result


def read_curves(run: Path) -> tuple[dict[str, float], ...]:
    """Return the rows of a training run's metrics.jsonl; none when there is no such file."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return ()
    return tuple(json.loads(line) for line in path.read_text().splitlines())


if __name__ == "__main__":
    main()
