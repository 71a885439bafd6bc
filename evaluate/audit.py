"""`clsp evaluate positives`: what a set's positives are like, in numbers, scores and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import click
import numpy as np
import torch

from ..shards.check import ShardError
from ..shards.files import write_atomic
from ..shards.images import open_images
from ..shards.preview import contact_sheet, preview_png
from ..shards.reader import ShardSet
from ..shards.scores import load_hardness, save_hardness
from ..shards.store import open_set
from .about import commit
from .about import hardware as machine
from .config import ENCODER_KINDS
from .copies import closest, memorisation, nearest_training, training_features
from .encoders import open_encoder
from .extractors import open_extractor
from .figures import histogram_figure
from .neighbours import nearest
from .page import facts, heading, note, picture, table, write_page
from .positives import (
    MEASURE,
    SetFeatures,
    hardness,
    measure_positives,
    pair_features,
    set_distances,
    set_features,
    view_cosines,
)

_WORDS: Mapping[str, tuple[str, str]] = {
    "easy": ("Cosine of two augmented views (easy)", ".3f"),
    "positive": ("Cosine of anchor and positive", ".3f"),
    "hard": ("Cosine of anchor and nearest other anchor (hard)", ".3f"),
    "agreement": ("Positives read as the anchor's class, percent", ".1f"),
    "anchor_agreement": ("Anchors read as their own class, percent", ".1f"),
    "diversity": ("Diversity: 1 - cosine of two positives of an anchor", ".3f"),
    "nearest_training": ("Cosine of positive and nearest other training image", ".3f"),
    "copies": (
        "Positives as near to another training image as its closest 1 % are, percent",
        ".1f",
    ),
    "frechet": ("Frechet distance of positives and anchors", ".3f"),
    "kernel": ("Kernel distance of positives and anchors", ".5f"),
}


def set_sheets(shards: ShardSet) -> dict[str, bytes]:
    """Return PNGs of a set by what they show: a sample, and if scored its extremes."""
    sheets = {"Anchors and their positives, one row each": preview_png(shards)}
    try:
        values, _ = load_hardness(shards)
    except ShardError:
        return sheets
    return sheets | extremes(shards, values)


def extremes(shards: ShardSet, values: np.ndarray, count: int = 48) -> dict[str, bytes]:
    """Return two PNGs: the `count` hardest and easiest positives, each beside its anchor."""
    order = np.argsort(values, axis=None, kind="stable")
    sheets = {}
    for name, chosen in (("hardest", order[::-1][:count]), ("easiest", order[:count])):
        places = zip(*np.unravel_index(chosen, values.shape), strict=True)
        pairs = np.stack([shards.pixels(int(row), ["anchor", f"p{slot}"]) for row, slot in places])
        text = f"The {len(pairs)} {name} positives, each to the right of its anchor"
        sheets[text] = contact_sheet(pairs[:, 0], pairs[:, 1:])
    return sheets


@click.command(epilog=f"\b\nAn encoder is one of\n{ENCODER_KINDS}")
@click.argument("address", metavar="SET")
@click.option("--encoder", required=True, help="The encoder to see with, of any kind below.")
@click.option(
    "--extractor",
    help="Another for the Frechet and kernel distance: an encoder, or fid-inception[:FILE], the "
    "network of published FIDs, whose weights are downloaded if no file is given.",
)
@click.option("--train", help="What the diffusion model was trained on: look for copies there.")
@click.option("--score", is_flag=True, help="Write every positive's hardness to SET/scores.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for a report.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
def main(
    address: str,
    encoder: str,
    extractor: str | None,
    train: str | None,
    score: bool,
    out: Path | None,
    device: str,
) -> None:
    """Measure a set's positives: hardness, class, diversity, copies, distance.

    With --score, `clsp train --hardness LOW:HIGH` can choose among them afterwards. With --out,
    OUT/positives.json and OUT/report.html are written.
    """
    try:
        values = audit(
            address,
            encoder,
            extractor=extractor,
            train=train,
            score=score,
            out=out,
            device=device,
        )
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    for name, value in values.items():
        click.echo(f"{name:<18}{value:9.4f}")


def audit(
    address: str,
    encoder: str,
    *,
    extractor: str | None = None,
    train: str | None = None,
    score: bool = False,
    out: Path | None = None,
    device: str = "auto",
) -> dict[str, float]:
    """Return what `measure_positives` finds of the set at `address`, seen with an encoder.

    extractor: for the distances instead, as `open_extractor` takes it; train: an image source, the
    diffusion model's training images, among which copies are looked for instead of among the
    anchors; score: write the hardness beside the set; out: a folder for the report. Raises
    ValueError for what cannot be opened.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    shards, opened = open_set(address), open_encoder(encoder)
    features = set_features(shards, opened, device=device)
    values = measure_positives(features)
    if extractor is not None:
        see = open_extractor(extractor, device=device)
        values |= set_distances(*pair_features(shards, see, device=device))
    sheets: dict[str, bytes] = {}
    if train is not None:
        source = open_images(train)
        training = training_features(shards, source, opened, device=device)
        values |= memorisation(features, training)
        sheets = closest(shards, source, *nearest_training(features, training))
    if score:
        save_hardness(shards, hardness(features), opened.sha256, MEASURE)
    if out is not None:
        about = {
            "set": f"{address}, id {shards.id}",
            "records": f"{len(shards):,} of {shards.positives} positives",
            "encoder": f"{encoder}, sha256 {opened.sha256}",
            "distances in the features of": extractor or encoder,
            "copies looked for in": train or "the set's own anchors",
            "plan": json.dumps(shards.manifest.plan.get("config", {})),
            "commit": commit(),
            "hardware": machine(),
        }
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"scores": values, "about": about}, indent=2) + "\n"
        write_atomic(out / "positives.json", text.encode())
        _write_report(out, shards, features, values, about, sheets)
    return values


def _write_report(
    out: Path,
    shards: ShardSet,
    features: SetFeatures,
    values: Mapping[str, float],
    about: Mapping[str, str],
    sheets: Mapping[str, bytes],
) -> None:
    keep, anchors = out / "figures", features.anchors
    found = hardness(features)
    between, _ = nearest(anchors, anchors, 1, torch.arange(len(anchors)))
    cosines = {
        "two augmented views (easy)": view_cosines(features).numpy(),
        "anchor and positive": 1 - found.ravel(),
        "anchor and nearest other anchor (hard)": between[:, 0].numpy(),
    }
    rows = []
    for name, (words, form) in _WORDS.items():
        if name in values:
            interval = ""
            if f"{name}_low" in values:
                ends = (values[f"{name}_{end}"] for end in ("low", "high"))
                interval = " to ".join(format(end, form) for end in ends)
            rows.append((words, format(values[name], form), interval))
    texts = {**set_sheets(shards), **extremes(shards, found), **sheets}
    parts = [
        heading("Numbers"),
        table(("", "value", "95 % interval"), rows),
        note("Intervals: the jackknife that leaves out a tenth of the images at a time."),
        heading("From easy to hard"),
        picture(histogram_figure(cosines, "cosine"), "cosines of pairs of images", keep, "cosines"),
    ]
    for number, (text, sheet) in enumerate(texts.items()):
        parts += [heading(text), picture(sheet, text, keep, f"sheet{number}")]
    parts += [heading("How it was made"), facts(about)]
    lead = (
        f"{len(shards):,} anchors with {shards.positives} positives each, as an encoder sees them."
    )
    write_page(out / "report.html", "Positives", lead, parts)


if __name__ == "__main__":
    main()
