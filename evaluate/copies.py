"""Which positives are as good as copies of images that the diffusion model was trained on?"""

from __future__ import annotations

import json
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..recipes import progress
from ..shards.images import ImageSource, load_pixels
from ..shards.pairing import pixels_sha256
from ..shards.preview import contact_sheet
from ..shards.reader import ShardSet
from ..train.encoder import Encoder
from .neighbours import nearest
from .positives import RARE, SetFeatures, embed

_BATCH = 256  # images at a time


class Training(NamedTuple):
    """The images that a diffusion model was trained on, as an encoder sees them.

    features: (M, F); own: (N,) the row that is each record's anchor itself, -1 where none is.
    """

    features: Tensor
    own: Tensor


@torch.no_grad()
def training_features(
    shards: ShardSet, source: ImageSource, encoder: Encoder, *, device: str = "cpu"
) -> Training:
    """Return the features of every image of a source, seen as the set's images are.

    They are cropped and resized to the set's size. An anchor is known by its pixels: by those that
    it had before it was stored, which its record names, else by those that are stored.
    """
    encoder = encoder.to(device).eval()
    size = shards.pixels(0, ["anchor"]).shape[1]
    parts: list[Tensor] = []
    row_of: dict[str, int] = {}
    with progress(len(source), "features", "image") as bar:
        for start in range(0, len(source), _BATCH):
            rows = range(start, min(start + _BATCH, len(source)))
            pixels = load_pixels(source, rows, size)
            row_of |= {pixels_sha256(image): row for image, row in zip(pixels, rows, strict=True)}
            parts.append(embed(encoder, torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device)))
            bar.update(len(rows))
    own = torch.tensor([row_of.get(_anchor(shards, row), -1) for row in range(len(shards))])
    return Training(torch.cat(parts), own)


def _anchor(shards: ShardSet, row: int) -> str:
    known: str | None = json.loads(shards.read(row, ["json"])["json"]).get("rgb_sha256")
    return known or pixels_sha256(shards.pixels(row, ["anchor"])[0])


def nearest_training(features: SetFeatures, training: Training) -> tuple[Tensor, Tensor]:
    """Return the cosine of each positive and its nearest training image, and its row: (N, K) each.

    The anchor's own image does not count.
    """
    count, per_anchor = features.positives.shape[:2]
    cosines = torch.empty(count, per_anchor)
    rows = torch.empty(count, per_anchor, dtype=torch.int64)
    for known in (True, False):
        chosen = (training.own >= 0) == known
        if chosen.any():
            own = training.own[chosen].repeat_interleave(per_anchor) if known else None
            queries = features.positives[chosen].flatten(0, 1)
            found = nearest(queries, training.features, 1, own)
            cosines[chosen], rows[chosen] = (x.view(-1, per_anchor) for x in found)
    return cosines, rows


def memorisation(features: SetFeatures, training: Training) -> dict[str, float]:
    """Return `measure_positives`' "nearest_training" and "copies", of the training images."""
    bank = training.features
    between, _ = nearest(bank, bank, 1, torch.arange(len(bank)))
    rare = float(np.quantile(between.numpy(), RARE))
    cosines, _ = nearest_training(features, training)
    return {
        "nearest_training": float(cosines.mean()),
        "copies": 100 * float((cosines > rare).float().mean()),
    }


def closest(
    shards: ShardSet, source: ImageSource, cosines: torch.Tensor, rows: torch.Tensor
) -> dict[str, bytes]:
    """Return a PNG: the 48 positives nearest to a training image, each beside that image.

    cosines, rows: (N, K), of each positive's nearest training image.
    """
    order = cosines.flatten().argsort(descending=True)[:48]
    places = [divmod(int(n), cosines.shape[1]) for n in order]
    shown = np.concatenate([shards.pixels(row, [f"p{slot}"]) for row, slot in places])
    images = load_pixels(source, [int(rows[place]) for place in places], shown.shape[1])
    text = f"The {len(places)} positives nearest to a training image, which is to their right"
    return {text: contact_sheet(shown, images[:, None])}
