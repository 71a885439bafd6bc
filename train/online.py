"""Accuracy of a kNN while training goes on, and without touching it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..shards.images import ImageError, load_pixels, open_images
from .config import TrainConfig

MOST_IMAGES = 10_000  # evenly spaced ones of a larger source
_K, _TEMPERATURE, _BATCH = 20, 0.07, 500


class OnlineKNN:
    """Leave-one-out accuracy of a weighted 20-nearest-neighbour vote over a labelled source."""

    def __init__(self, spec: str, config: TrainConfig, image_size: int) -> None:
        """spec: an image source. Raises ImageError when it has no labels."""
        source = open_images(spec)
        if source.labels is None:
            raise ImageError(f"{spec} has no labels, which an online kNN needs")
        rows = np.linspace(0, len(source) - 1, min(len(source), MOST_IMAGES)).astype(int)
        pixels = load_pixels(source, rows.tolist(), image_size)
        self.images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        self.labels = torch.from_numpy(np.asarray(source.labels)[rows])
        self.mean, self.std = (torch.tensor(v).view(3, 1, 1) for v in (config.mean, config.std))

    @torch.no_grad()
    def accuracy(self, backbone: nn.Module, device: torch.device) -> float:
        """Return it in percent; the backbone's mode and all random states are left as they were."""
        training = backbone.training
        backbone.eval()
        with torch.random.fork_rng():
            features = [
                backbone(((batch.float() / 255 - self.mean) / self.std).to(device)).float().cpu()
                for batch in self.images.split(_BATCH)
            ]
        backbone.train(training)
        found = _leave_one_out(nn.functional.normalize(torch.cat(features), dim=1), self.labels)
        return 100 * float((found == self.labels).float().mean())


def _leave_one_out(features: Tensor, labels: Tensor) -> Tensor:
    """Each image's class, (N,), by the others' votes. Wu et al., 2018, arXiv:1805.01978."""
    found = []
    for start in range(0, len(features), _BATCH):
        similarity = features[start : start + _BATCH] @ features.T
        rows = torch.arange(len(similarity))
        similarity[rows, start + rows] = -torch.inf  # an image does not vote for itself
        nearest, neighbours = similarity.topk(min(_K, len(features) - 1), dim=1)
        votes = torch.zeros(len(similarity), int(labels.max()) + 1)
        votes.scatter_add_(1, labels[neighbours], (nearest / _TEMPERATURE).exp())
        found.append(votes.argmax(dim=1))
    return torch.cat(found)
