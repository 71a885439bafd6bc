"""`clsp evaluate finetune`: whole encoders trained on 1 %, 10 % and 100 % of the labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from ..recipes import announce, build_config, config_options
from ..shards.images import ImageSource, load_pixels, open_images
from ..train.encoder import Encoder
from .compare import Run, group_arms
from .config import ENCODER_KINDS
from .encoders import open_encoder
from .features import content_hash
from .kept import encoder_facts, keep
from .metrics import accuracy
from .page import note
from .probe import Result
from .report import Arm
from .table import write_arms
from .tuning import FinetuneConfig, balanced_rows, finetune, predict


def finetune_all(
    addresses: Sequence[str],
    sources: tuple[str, str],
    out: Path,
    config: FinetuneConfig,
    *,
    device: str = "auto",
    download: bool = False,
) -> list[Arm]:
    """Fine-tune each encoder with each share of the labels; write the table into `out`.

    sources: labelled images to fine-tune on and to test on. Each result is kept in `out`/results
    as soon as it is known. Returns the arms, with a score such as "10 %" for each share.
    Raises ValueError for what cannot be opened or has no labels.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    opened = [open_images(spec, download=download) for spec in sources]
    for source in opened:
        if source.labels is None:
            raise ValueError(f"{source.spec} has no labels, and fine-tuning needs them")
    train, test = opened
    if train.classes != test.classes:
        raise ValueError(f"{train.spec} and {test.spec} have other classes")
    encoders = {address: open_encoder(address) for address in addresses}
    announce(config, out / "config.json")
    settings = {name: v for name, v in asdict(config).items() if name not in ("percents", "epochs")}
    runs = []
    for address, encoder in encoders.items():
        scores = {}
        images = {
            part: _facts(encoder, source) for part, source in (("train", train), ("test", test))
        }
        for percent, epochs in zip(config.percents, config.epochs, strict=True):
            found = []
            for draw in range(config.draws):
                about = {
                    **encoder_facts(encoder),
                    **settings,
                    **images,
                    "percent": percent,
                    "epochs": epochs,
                    "draw": draw,
                }
                measure = partial(_measure, encoder, train, test, config, about, device)
                found.append(keep(out / "results", f"{percent:g}-{draw}", about, measure))
            scores[f"{percent:g} %"] = float(np.mean([value["top1"] for value in found]))
            click.echo(f"{percent:6g} %  {scores[f'{percent:g} %']:6.2f}  {address}", err=True)
        place = {"encoder": address, "train": train.spec, "test": test.spec}
        place["settings"] = json.dumps(asdict(config))
        result = Result(scores, np.zeros((0, 0), np.int64))
        runs.append(Run(Path(address), result, (), place, encoder.config))
    arms = group_arms(runs)
    about = {**runs[0].about, "encoder": " ".join(addresses)}  # of all, not of the first
    _write(out, arms, about, config)
    return arms


def _facts(encoder: Encoder, source: ImageSource) -> dict[str, str]:
    """What a source's images and labels are, because those below a path may change."""
    labels = hashlib.sha256(np.asarray(source.labels, np.int64).tobytes()).hexdigest()
    return {
        "source": source.spec,
        "content": content_hash(encoder, source),
        "labels": labels,
    }


def _measure(
    encoder: Encoder,
    train: ImageSource,
    test: ImageSource,
    config: FinetuneConfig,
    about: dict[str, Any],
    device: str,
) -> dict[str, Any]:
    assert train.labels is not None
    assert test.labels is not None
    seed = config.seed + about["draw"]
    classes = len(train.classes or ()) or int(train.labels.max()) + 1
    rows = balanced_rows(train.labels, classes, about["percent"], seed)
    model = finetune(
        encoder,
        _images(train, rows.tolist(), encoder.image_size),
        torch.from_numpy(train.labels[rows]),
        classes,
        config,
        epochs=about["epochs"],
        seed=seed,
        device=device,
    )
    shown = _images(test, range(len(test)), encoder.image_size)
    logits = predict(model, encoder, shown, device)
    return {"top1": accuracy(logits, torch.from_numpy(test.labels)), "images": len(rows)}


def _images(source: ImageSource, rows: Sequence[int], size: int) -> Tensor:
    return torch.from_numpy(load_pixels(source, rows, size)).permute(0, 3, 1, 2)


def _write(out: Path, arms: Sequence[Arm], about: dict[str, str], config: FinetuneConfig) -> None:
    """Write OUT/finetune.json, OUT/finetune.md, OUT/report.html and its figure."""
    draws = f", each the mean of {config.draws} draws of labels" if config.draws > 1 else ""
    shares = list(arms[0].results[0].scores)
    write_arms(
        out,
        "finetune",
        arms,
        about,
        title="Fine-tuning",
        lead=f"{len(arms)} ways of training, fine-tuned with few labels and with all.",
        what=f"Percent of held-out images{draws}",
        plotted=shares,
        main=shares[0],
        behind=[
            note(
                "The whole network: SGD with Nesterov momentum, crops and mirror images only, no "
                "weight decay (Chen et al., 2020, appendix B.5); labels drawn evenly over classes."
            )
        ],
    )


@click.command(epilog=f"\b\nAn ENCODER is one of\n{ENCODER_KINDS}")
@click.argument("encoders", metavar="ENCODER...", nargs=-1, required=True)
@click.option("--train", required=True, help="Labelled images to fine-tune on.")
@click.option("--test", required=True, help="Labelled images to test on.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Output folder.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--download", is_flag=True, help="Fetch the image data set if it is not there.")
@config_options(FinetuneConfig)
def main(
    encoders: tuple[str, ...],
    train: str,
    test: str,
    out: Path,
    device: str,
    download: bool,
    **options: Any,
) -> None:
    """Fine-tune whole encoders with 1 %, 10 % and 100 % of the labels.

    Encoders that differ in the training seed only are one row. Stopped at any moment, the same
    command goes on behind the last finished share. Writes OUT/finetune.json, OUT/finetune.md and
    OUT/report.html.
    """
    config = build_config(FinetuneConfig, options)
    try:
        finetune_all(encoders, (train, test), out, config, device=device, download=download)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo((out / "finetune.md").read_text(), nl=False)


if __name__ == "__main__":
    main()
