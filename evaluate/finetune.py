"""`clsp evaluate finetune`: whole encoders trained on 1 %, 10 % and 100 % of the labels."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..recipes import announce, build_config, config_options, progress
from ..shards.files import write_atomic
from ..shards.images import ImageSource, load_pixels, open_images
from ..shards.order import hash_key, uniforms
from ..train.config import TrainConfig
from ..train.encoder import Encoder
from ..train.views import DRAWS, draw_parameters, make_view
from .about import commit, hardware
from .compare import Run, group_arms
from .config import ENCODER_KINDS
from .encoders import open_encoder
from .figures import groups_figure
from .kept import encoder_facts, keep
from .metrics import accuracy
from .page import facts, heading, note, picture, table, write_page
from .probe import Result
from .report import Arm, comparison, score_rows, spread_note, text_table


def _help(text: str, default: Any) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class FinetuneConfig:
    """How encoders are fine-tuned. Chen et al., 2020, arXiv:2002.05709, appendix B.5."""

    percents: tuple[float, ...] = _help("Percent of the labels.", (1.0, 10.0, 100.0))
    epochs: tuple[int, ...] = _help("Epochs for each of them.", (60, 30, 30))
    lr: float = _help("SGD's learning rate for 256 images a step; it scales with the batch.", 0.05)
    batch: int = _help("Images a step.", 256)
    crop_min: float = _help("Least area of a random resized crop.", 0.08)
    flip: bool = _help("Mirror half of the images.", True)
    draws: int = _help("Draws of the labelled images whose accuracies are averaged.", 1)
    seed: int = _help("Seed of draws, order and crops.", 0)

    def __post_init__(self) -> None:
        if not self.percents or not all(0 < percent <= 100 for percent in self.percents):
            raise ValueError(f"percents is {self.percents}, expected numbers in (0, 100]")
        if len(self.epochs) != len(self.percents) or min(self.epochs) < 1:
            raise ValueError(
                f"epochs is {self.epochs}, expected one number of at least 1 for each of the "
                f"percents {self.percents}"
            )
        for name in ("batch", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.lr <= 0:
            raise ValueError(f"lr is {self.lr}, expected more than 0")
        if not 0 < self.crop_min <= 1:
            raise ValueError(f"crop_min is {self.crop_min}, expected a value in (0, 1]")


def balanced_rows(labels: np.ndarray, classes: int, percent: float, seed: int) -> np.ndarray:
    """Return sorted rows: `percent` of the images, as many of each class, drawn by seed.

    At least one of each class; of a class that has too few, all; 100 is all images.
    Raises ValueError for a class without an image.
    """
    counts = np.bincount(labels, minlength=classes)
    if not counts.all():
        raise ValueError(f"class {int(counts.argmin())} of {classes} has no image to fine-tune on")
    if percent == 100:
        return np.arange(len(labels))
    each = max(1, round(percent / 100 * len(labels) / classes))
    rng = np.random.default_rng([seed, 0])
    parts = [rng.permutation(np.flatnonzero(labels == label))[:each] for label in range(classes)]
    return np.sort(np.concatenate(parts))


def finetune(
    encoder: Encoder,
    images: Tensor,
    labels: Tensor,
    classes: int,
    config: FinetuneConfig,
    *,
    epochs: int,
    seed: int,
    device: str = "cpu",
) -> nn.Module:
    """Return backbone and a new linear classifier, trained together on labelled images.

    images: (N, 3, S, S) uint8; labels: (N,). The published protocol: SGD with Nesterov momentum
    0.9, the rate 0.05 for 256 images a step (scaled with the step's size), no warm-up, no
    weight decay, random resized crops and mirror images only. The rate falls to 0 by half a cosine;
    the classifier starts at 0. The encoder itself stays as it is.
    Raises ValueError when the loss is not finite.

    Chen et al., 2020, arXiv:2002.05709, appendix B.5.
    """
    torch.manual_seed(seed)  # for networks with dropout
    head = nn.Linear(encoder.feature_dim, classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    model = nn.Sequential(copy.deepcopy(encoder.backbone), head).to(device).train()
    view = TrainConfig(
        mean=encoder.mean,
        std=encoder.std,
        crop_min=config.crop_min,
        flip_p=0.5 if config.flip else 0.0,
        jitter_p=0.0,
        grey_p=0.0,
    )
    # A last, smaller batch would be the odd one for batch norm: all are of one size.
    batch = min(config.batch, len(images))
    steps = len(images) // batch
    keys = np.array([hash_key(str(row)) for row in range(len(images))], np.uint64)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=config.lr * batch / 256, momentum=0.9, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    generator = torch.Generator().manual_seed(seed)
    with progress(epochs * steps, f"fine-tune {len(images)} images", "step") as bar:
        for epoch in range(epochs):
            order = torch.randperm(len(images), generator=generator)
            for rows in order[: steps * batch].split(batch):
                draws = uniforms(seed, epoch, keys[rows.numpy()], "finetune", DRAWS)
                drawn = draw_parameters(view, draws, images.shape[-1])
                x = make_view(images[rows].to(device), drawn, view)
                loss = cross_entropy(model(x), labels[rows].to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
            if not loss.isfinite():
                raise ValueError(f"fine-tuning diverged at lr {config.lr}; give a smaller --lr")
    return model.eval()


@torch.no_grad()
def predict(model: nn.Module, encoder: Encoder, images: Tensor, device: str = "cpu") -> Tensor:
    """Return a model's logits (N, C) for images (N, 3, S, S) uint8, as they are."""
    mean, std = (
        torch.tensor(value, device=device).view(3, 1, 1) for value in (encoder.mean, encoder.std)
    )
    parts = images.split(256)
    return torch.cat(
        [model((p.to(device).float() / 255 - mean) / std).float().cpu() for p in parts]
    )


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
        for percent, epochs in zip(config.percents, config.epochs, strict=True):
            found = []
            for draw in range(config.draws):
                about = {
                    **encoder_facts(encoder),
                    **settings,
                    "train": train.spec,
                    "test": test.spec,
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
    _write(out, arms, {"encoders": " ".join(addresses), **runs[0].about}, config)
    return arms


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
    made = {**about, "commit": commit(), "hardware": hardware()}
    head, rows = score_rows(arms)
    values = {
        "arms": {
            arm.name: {"seeds": arm.seeds, "scores": [r.scores for r in arm.results]}
            for arm in arms
        },
        "about": made,
    }
    write_atomic(out / "finetune.json", (json.dumps(values, indent=2) + "\n").encode())
    write_atomic(out / "finetune.md", text_table(head, rows).encode())
    draws = f", each the mean of {config.draws} draws of labels" if config.draws > 1 else ""
    parts = [
        heading("Accuracy by share of the labels"),
        table(head, rows),
        note(f"Percent of held-out images; {spread_note(arms)}{draws}."),
    ]
    if len(arms) > 1:
        parts.append(comparison(arms, next(iter(arms[0].results[0].scores))))
    plotted = {arm.name: {n: arm.scores(n) for n in arm.results[0].scores} for arm in arms}
    label = "accuracy, percent; a dot is a seed, a bar the mean"
    parts += [
        picture(groups_figure(plotted, label), "accuracies", out / "figures", "finetune"),
        note(
            "The whole network: SGD with Nesterov momentum, crops and mirror images only, no "
            "weight decay (Chen et al., 2020, appendix B.5); labels drawn evenly over classes."
        ),
        heading("How it was made"),
        facts(made),
    ]
    lead = f"{len(arms)} ways of training, fine-tuned with few labels and with all."
    write_page(out / "report.html", "Fine-tuning", lead, parts)


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
