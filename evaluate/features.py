"""Features of labelled images, computed once for each image and its mirror image, and kept."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from ..recipes import progress
from ..shards.files import write_atomic
from ..shards.images import ImageSource, Pixels, load_pixels
from ..train.encoder import Encoder

_BATCH = 256


@dataclass(frozen=True)
class Features:
    """Backbone outputs of N labelled images.

    plain, mirrored: (N, F) float32, of each image and of its mirror image; labels: (N,) int64 in
    0..C-1; classes: C names.
    """

    plain: Tensor
    mirrored: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def select(self, rows: Any) -> Features:
        """Return the features of some images: rows, an index or mask of them."""
        return Features(self.plain[rows], self.mirrored[rows], self.labels[rows], self.classes)


def compute_features(
    encoder: Encoder, source: ImageSource, *, device: str = "cpu", keep: Path | None = None
) -> Features:
    """Return the features of every image of a source, resized to the encoder's image size.

    keep: a folder where they are stored and found again, by the encoder's weights and the pixels.
    Raises ImageError for an image that cannot be read and ValueError for a source without labels.
    """
    if source.labels is None:
        raise ValueError(
            f"{source.spec} has no labels, and evaluation needs them: a folder is labelled when "
            "every image lies in one level of class folders"
        )
    pixels = load_pixels(source, size=encoder.image_size)
    if keep is None:
        found = _forward(encoder, pixels, device)
    else:
        path = keep / f"features-{_content_hash(encoder, pixels)}.safetensors"
        if not path.exists():
            keep.mkdir(parents=True, exist_ok=True)
            write_atomic(path, save(_forward(encoder, pixels, device)))
        found = load_file(path)
    labels = torch.from_numpy(np.asarray(source.labels, np.int64))
    names = source.classes or tuple(str(n) for n in range(int(labels.max()) + 1))
    return Features(found["plain"], found["mirrored"], labels, names)


def _content_hash(encoder: Encoder, pixels: Pixels) -> str:
    # Mean and deviation are part of the function that the encoder is.
    text = f"{encoder.sha256} {encoder.mean} {encoder.std} {pixels.shape}".encode()
    return hashlib.sha256(text + hashlib.sha256(pixels.tobytes()).digest()).hexdigest()[:32]


@torch.no_grad()
def _forward(encoder: Encoder, pixels: Pixels, device: str) -> dict[str, Tensor]:
    encoder = encoder.to(device).eval()
    mean, std = (
        torch.tensor(value, device=device).view(3, 1, 1) for value in (encoder.mean, encoder.std)
    )
    parts: dict[str, list[Tensor]] = {"plain": [], "mirrored": []}
    with progress(len(pixels), "features", "image") as bar:
        for start in range(0, len(pixels), _BATCH):
            batch = torch.from_numpy(pixels[start : start + _BATCH]).to(device)
            images = (batch.permute(0, 3, 1, 2).float() / 255 - mean) / std
            parts["plain"].append(encoder(images).float().cpu())
            parts["mirrored"].append(encoder(images.flip(3)).float().cpu())
            bar.update(len(batch))
    return {name: torch.cat(part) for name, part in parts.items()}
