"""`clsp evaluate representation`: an encoder layer by layer, in numbers and pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..recipes import cache_option
from ..shards.files import write_atomic
from ..shards.images import ImageSource, load_pixels, open_images
from ..train.encoder import Encoder, load_projector
from .about import commit, hardware
from .config import ENCODER_KINDS
from .encoders import open_encoder
from .features import Features, compute_features
from .figures import scatter_figure
from .geometry import alignment, effective_rank, tsne, umap, uniformity
from .linear import linear_probe
from .page import facts, heading, note, picture, table, write_page
from .positives import view_features

_MOST = 2_000  # images, evenly spread, for what looks at pairs of them
_COLUMNS = {
    "width": ("width", ".0f"),
    "linear_top1": ("linear, percent", ".1f"),
    "effective_rank": ("effective rank", ".1f"),
    "alignment": ("alignment", ".3f"),
    "uniformity": ("uniformity", ".2f"),
}


def layers(projector: nn.Sequential) -> Iterator[tuple[str, nn.Module]]:
    """Yield the backbone and each layer of the projector by name, with what leads up to it."""
    yield "backbone", nn.Identity()
    for number, layer in enumerate(projector, start=1):
        yield f"projector {number}, {type(layer).__name__}", projector[:number]


@torch.no_grad()
def through(module: nn.Module, x: Tensor) -> Tensor:
    """Return a module's output for rows (..., F), some thousand at a time."""
    # A copy: the projector's ReLU works in place.
    parts = [module(part.clone()) for part in x.flatten(0, -2).split(4096)]
    out: Tensor = torch.cat(parts).unflatten(0, x.shape[:-1])
    return out


def measure_layers(
    train: Features, test: Features, views: Tensor, projector: nn.Sequential, *, epochs: int = 100
) -> dict[str, dict[str, float]]:
    """Return for each layer its width, linear probe, effective rank, alignment and uniformity.

    train, test: backbone features; views: (M, 2, F) backbone features of two views of test images.
    The probe, by the reference's protocol but for the flip, sees every layer scaled to features of
    unit variance: the layers' own scales are far apart, and one learning rate must suit them all.
    """
    found = {}
    rows = _spread(len(test.plain))
    for name, module in layers(projector):
        fitted, tested = through(module, train.plain), through(module, test.plain)
        scale = fitted.std(dim=0).mean().clamp(min=1e-12)
        parts = [
            replace(features, plain=x / scale, mirrored=x / scale)
            for features, x in ((train, fitted), (test, tested))
        ]
        probe = linear_probe(*parts, epochs=epochs, flip=False)
        first, second = through(module, views).unbind(1)
        found[name] = {
            "width": fitted.shape[1],
            "linear_top1": probe.scores["linear_top1"],
            "effective_rank": effective_rank(tested[rows]),
            "alignment": alignment(first, second),
            "uniformity": uniformity(tested[rows]),
        }
    return found


def _spread(count: int) -> Tensor:
    return torch.linspace(0, count - 1, min(count, _MOST)).long()


def load_features(path: Path, count: int) -> Tensor:
    """Return features (N, F) of other making from a safetensors file. Raises ValueError."""
    try:
        x: Tensor = load_file(path)["features"].float()
    except (SafetensorError, KeyError, OSError) as error:
        raise ValueError(f"{path} holds no tensor named features: {error}") from error
    if x.ndim != 2 or len(x) != count:
        raise ValueError(f"{path} has features {tuple(x.shape)}, expected ({count}, F)")
    return x


@click.command(epilog=f"\b\nAn encoder is one of\n{ENCODER_KINDS}")
@click.option("--encoder", required=True, help="OUT/encoder of a run, or any other: see below.")
@click.option("--train", required=True, help="Labelled images to fit the probes on.")
@click.option("--test", required=True, help="Labelled images to test on.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Output folder.")
@click.option(
    "--also",
    metavar="NAME=FILE",
    multiple=True,
    help="Lay out these features of the test images too, such as those of `clsp features`.",
)
@click.option("--umap", "with_umap", is_flag=True, help="UMAP beside t-SNE; needs clsp[umap].")
@click.option("--epochs", default=100, show_default=True, type=click.IntRange(min=1))
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@cache_option
def main(
    encoder: str,
    train: str,
    test: str,
    out: Path,
    also: tuple[str, ...],
    with_umap: bool,
    epochs: int,
    device: str,
    cache: Path,
) -> None:
    """Look into an encoder: probes before and after each layer of the projector, alignment and
    uniformity, effective rank, and pictures by t-SNE and UMAP.

    Writes OUT/representation.json and OUT/report.html.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        opened = open_encoder(encoder)
        # Encoders made elsewhere have no projector here: one layer, the backbone.
        projector = load_projector(encoder) if Path(encoder).is_dir() else nn.Sequential()
        sources = [open_images(spec) for spec in (train, test)]
        more = {}
        for text in also:
            name, equals, path = text.partition("=")
            if not equals:
                raise click.BadParameter(f"{text!r} is not NAME=FILE", param_hint="--also")
            more[name] = load_features(Path(path), len(sources[1]))
        keep = cache / "features"
        found = [compute_features(opened, s, device=device, keep=keep) for s in sources]
        views = _views(opened, sources[1], device)
        values = measure_layers(found[0], found[1], views, projector, epochs=epochs)
        panels = _lay_out({"encoder": found[1].plain, **more}, with_umap)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    about = {
        "encoder": f"{encoder}, sha256 {opened.sha256}",
        "train": train,
        "test": test,
        **{f"features: {name}": path for name, _, path in (text.partition("=") for text in also)},
        "training": json.dumps(opened.config),
        "commit": commit(),
        "hardware": hardware(),
    }
    _write(out, values, panels, found[1], about)
    for name, row in values.items():
        click.echo(f"{name:<20}{row['linear_top1']:6.2f}  rank {row['effective_rank']:.1f}")


def _views(encoder: Encoder, source: ImageSource, device: str) -> Tensor:
    rows = _spread(len(source)).tolist()
    pixels = torch.from_numpy(load_pixels(source, rows, encoder.image_size)).permute(0, 3, 1, 2)
    parts = zip(pixels.split(256), range(0, len(rows), 256), strict=True)
    encoder.to(device)
    return torch.cat(
        [
            view_features(encoder, part.to(device), [source.key(row) for row in rows[n : n + 256]])
            for part, n in parts
        ]
    )


def _lay_out(features: Mapping[str, Tensor], with_umap: bool) -> dict[str, np.ndarray]:
    methods = {"t-SNE": tsne, **({"UMAP": umap} if with_umap else {})}
    return {
        f"{method} of {name} features": lay_out(x[_spread(len(x))])
        for method, lay_out in methods.items()
        for name, x in features.items()
    }


def _write(
    out: Path,
    values: Mapping[str, Mapping[str, float]],
    panels: Mapping[str, np.ndarray],
    test: Features,
    about: Mapping[str, str],
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"layers": values, "about": about}, indent=2) + "\n"
    write_atomic(out / "representation.json", text.encode())
    rows = [
        [name, *(format(row[key], form) for key, (_, form) in _COLUMNS.items())]
        for name, row in values.items()
    ]
    labels = test.labels[_spread(len(test.labels))].numpy()
    parts = [
        heading("Layer by layer"),
        table(["", *(words for words, _ in _COLUMNS.values())], rows),
        note(
            "Alignment: squared distance of two views, 0 is best. Uniformity: lower is more even. "
            "Both on the unit sphere. Effective rank: how many directions are in use."
        ),
        heading("Test images in the plane"),
        picture(
            scatter_figure(panels, labels, test.classes), "test images", out / "figures", "map"
        ),
        heading("How it was made"),
        facts(about),
    ]
    lead = "What each layer of the encoder and its projector knows, and how its features lie."
    write_page(out / "report.html", "Representation", lead, parts)


if __name__ == "__main__":
    main()
