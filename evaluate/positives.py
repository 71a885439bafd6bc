"""Are a set's positives good: hard, of their anchor's class, unlike each other, and no copies?"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate, normalize

from ..recipes import progress
from ..shards.check import ShardError
from ..shards.order import hash_key, uniforms
from ..shards.reader import ShardSet
from ..train.config import TrainConfig
from ..train.encoder import Encoder
from ..train.views import DRAWS, draw_parameters, make_view
from .distances import frechet_distance, kernel_distance
from .neighbours import nearest

MEASURE = "1 - cosine of anchor and positive in the encoder's features"
_BATCH = 64  # records at a time
_K = 20  # neighbours that vote on a positive's class
_TEMPERATURE = 0.07
_MOST = {"frechet": 10_000, "kernel": 2_000}  # records that a distance looks at
RARE = 0.99  # of training images are less near to their nearest one than this quantile


class SetFeatures(NamedTuple):
    """An encoder's features of N records.

    anchors: (N, F); positives: (N, K, F); views: (N, 2, F), of two augmented views of each anchor;
    labels: (N,) int64, or None when a record has no label.
    """

    anchors: Tensor
    positives: Tensor
    views: Tensor
    labels: Tensor | None


@torch.no_grad()
def set_features(shards: ShardSet, encoder: Encoder, *, device: str = "cpu") -> SetFeatures:
    """Return the encoder's features of every image of a set, and of two views of each anchor.

    Raises ShardError for a set without anchors and for a damaged one.
    """
    _need_anchors(shards)
    encoder = encoder.to(device).eval()
    names = ["anchor", *(f"p{number}" for number in range(shards.positives))]
    parts: dict[str, list[Tensor]] = {"images": [], "views": []}
    labels = []
    with progress(len(shards), "features", "record") as bar:
        for start in range(0, len(shards), _BATCH):
            rows = range(start, min(start + _BATCH, len(shards)))
            pixels = torch.from_numpy(np.stack([shards.pixels(row, names) for row in rows]))
            images = pixels.flatten(0, 1).permute(0, 3, 1, 2).to(device)
            parts["images"].append(embed(encoder, images).unflatten(0, (len(rows), len(names))))
            keys = [shards.key(row) for row in rows]
            anchors = images[:: len(names)].contiguous()
            parts["views"].append(view_features(encoder, anchors, keys))
            labels += [json.loads(shards.read(row, ["json"])["json"]).get("label") for row in rows]
            bar.update(len(rows))
    found = torch.cat(parts["images"])
    known = None if None in labels else torch.tensor(labels)
    return SetFeatures(found[:, 0], found[:, 1:], torch.cat(parts["views"]), known)


@torch.no_grad()
def pair_features(
    shards: ShardSet, see: Callable[[Tensor], Tensor], *, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Return the features of anchors and of one positive of each, two of (M, F), for distances.

    see: an extractor, from images (B, 3, S, S) uint8 on `device` to features on the CPU. Of a set
    of more than 10,000 records so many are taken, evenly spread. Raises ShardError as above.
    """
    _need_anchors(shards)
    rows = _spread(len(shards), _MOST["frechet"]).tolist()
    parts = []
    with progress(len(rows), "features for distances", "record") as bar:
        for start in range(0, len(rows), _BATCH // 2):
            chosen = rows[start : start + _BATCH // 2]
            pixels = [
                shards.pixels(row, ["anchor", f"p{row % shards.positives}"]) for row in chosen
            ]
            images = torch.from_numpy(np.concatenate(pixels)).permute(0, 3, 1, 2).to(device)
            parts.append(see(images).unflatten(0, (len(chosen), 2)))
            bar.update(len(chosen))
    anchors, positives = torch.cat(parts).unbind(1)
    return anchors, positives


def _need_anchors(shards: ShardSet) -> None:
    if not shards.manifest.anchors:
        raise ShardError(f"{shards.folder} carries no anchors to measure its positives against")


@torch.no_grad()
def view_features(encoder: Encoder, images: Tensor, keys: Sequence[str]) -> Tensor:
    """Return the features of two augmented views of each image, (B, 2, F), on the CPU.

    images: (B, 3, S, S) uint8 on the encoder's device; keys: their names, which decide the draws.
    The views are drawn as in the encoder's own training, or as CIFAR-10's where it had none.
    """
    config, hashes = _view_config(encoder), np.array([hash_key(key) for key in keys], np.uint64)
    views = []
    for number in range(2):
        draws = uniforms(0, 0, hashes, f"view{number}", DRAWS)
        drawn = draw_parameters(config, draws, images.shape[-1])
        views.append(encoder(_resize(make_view(images, drawn, config), encoder)))
    return torch.stack(views, dim=1).float().cpu()


def _view_config(encoder: Encoder) -> TrainConfig:
    fields = ("crop_min", "jitter", "jitter_p", "grey_p", "solarize_p", "flip_p")
    trained = {name: encoder.config[name] for name in fields if name in encoder.config}
    return dataclasses.replace(TrainConfig(mean=encoder.mean, std=encoder.std), **trained)


def embed(encoder: Encoder, images: Tensor) -> Tensor:
    """Return features (B, F) on the CPU of images (B, 3, S, S) uint8 on the encoder's device."""
    mean, std = (
        torch.tensor(v, device=images.device).view(3, 1, 1) for v in (encoder.mean, encoder.std)
    )
    features: Tensor = encoder(_resize((images.float() / 255 - mean) / std, encoder))
    return features.float().cpu()


def _resize(images: Tensor, encoder: Encoder) -> Tensor:
    side = (encoder.image_size,) * 2
    if images.shape[-2:] == side:
        return images
    return interpolate(images, side, mode="bicubic", antialias=True)


def hardness(features: SetFeatures) -> np.ndarray:
    """Return 1 - cosine of each anchor and each of its positives, (N, K) float32 in [0, 2]."""
    cosines = cosine_similarity(features.positives, features.anchors[:, None], dim=2)
    return np.asarray(1 - cosines.numpy(), np.float32)


def view_cosines(features: SetFeatures) -> Tensor:
    """Return the cosine of each anchor's two views, (N,)."""
    first, second = features.views.unbind(1)
    return cosine_similarity(first, second)


def measure_positives(features: SetFeatures) -> dict[str, float]:
    """Return what is known of the positives, by name; cosines, and shares in percent.

    easy, positive, hard: mean cosine of two views of an anchor, of an anchor and a positive, and of
    an anchor and its nearest other anchor (the paper's scale from easy to hard).
    agreement, anchor_agreement: positives, and anchors, of which a kNN on the other anchors reads
    the anchor's label; there when the set has labels.
    diversity: mean 1 - cosine of two positives of an anchor; there when K is above 1.
    nearest_training: mean cosine of a positive and the nearest anchor that is not its own;
    copies: positives nearer to one than 99 % of anchors are to their nearest other one.
    frechet, kernel: distances of positives and anchors, each with _low and _high, their 95 %
    confidence interval; there from 20 records on.
    """
    anchors, positives = features.anchors, features.positives
    count, per_anchor = positives.shape[:2]
    k = min(_K, count - 1)
    numbers = torch.arange(count)
    between, others = nearest(anchors, anchors, k, numbers)
    own = numbers.repeat_interleave(per_anchor)
    of_positive, found = nearest(positives.flatten(0, 1), anchors, k, own)
    rare = float(np.quantile(between[:, 0].numpy(), RARE))
    values = {
        "easy": view_cosines(features).mean(),
        "positive": 1 - hardness(features).mean(),
        "hard": between[:, 0].mean(),
        "nearest_training": of_positive[:, 0].mean(),
        "copies": 100 * (of_positive[:, 0] > rare).float().mean(),
    }
    if features.labels is not None:
        agree = _vote(of_positive, features.labels[found]) == features.labels[own]
        values["agreement"] = 100 * agree.float().mean()
        agree = _vote(between, features.labels[others]) == features.labels
        values["anchor_agreement"] = 100 * agree.float().mean()
    if per_anchor > 1:
        unit = normalize(positives, dim=2)
        pairs = (unit @ unit.transpose(1, 2)).sum(dim=(1, 2)) - unit.square().sum(dim=(1, 2))
        values["diversity"] = 1 - (pairs / (per_anchor * (per_anchor - 1))).mean()
    one = positives[numbers, numbers % per_anchor]  # of each anchor
    return {name: float(value) for name, value in values.items()} | set_distances(anchors, one)


def set_distances(anchors: Tensor, positives: Tensor) -> dict[str, float]:
    """Return Frechet and kernel distance of two of (N, F), as `measure_positives` says.

    The rows are spread evenly: at most 10,000 of them for the Frechet distance, and 2,000 for the
    kernel distance, which has no bias that asks for more.
    """
    if len(anchors) < 20:
        return {}
    values: dict[str, float] = {}
    for name, distance in (("frechet", frechet_distance), ("kernel", kernel_distance)):
        rows = _spread(len(anchors), _MOST[name])
        found = distance(anchors[rows], positives[rows])
        values |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return values


def _spread(count: int, most: int) -> Tensor:
    """Return at most so many rows of `count`, from the first to the last."""
    return torch.linspace(0, count - 1, min(count, most)).long()


def _vote(cosines: Tensor, labels: Tensor) -> Tensor:
    """The class (M,) that neighbours vote for with exp(cosine / 0.07); both (M, k)."""
    votes = torch.zeros(len(labels), int(labels.max()) + 1)
    votes.scatter_add_(1, labels, ((cosines - cosines[:, :1]) / _TEMPERATURE).exp())
    return votes.argmax(dim=1)
