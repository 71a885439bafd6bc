"""Fine-tuning: an encoder and some labelled images in, a classifier out."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..recipes import progress
from ..shards.order import hash_key, uniforms
from ..train.config import TrainConfig
from ..train.encoder import Encoder
from ..train.views import DRAWS, draw_parameters, make_view


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
