"""Linear and few-shot probes: two `Features` in, numbers out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from .features import Features


class Probe(NamedTuple):
    """What a probe found: accuracies in percent, and its prediction of each test image (N,)."""

    scores: dict[str, float]
    predictions: Tensor


def linear_probe(
    train: Features,
    test: Features,
    *,
    lr: float = 1.0,
    epochs: int = 100,
    batch: int = 256,
    flip: bool = True,
    seed: int = 0,
) -> Probe:
    """Train a linear classifier on frozen features by SGD and test its last state.

    The reference's protocol: no momentum, no weight decay, the rate times 0.1 after 60 % and 80 %
    of the epochs. flip: each image is its mirror image in half of the epochs.
    Scores: "linear_top1" and, with more than 5 classes, "linear_top5".
    """
    generator = torch.Generator().manual_seed(seed)
    count, width = train.plain.shape
    weight = torch.zeros(len(train.classes), width, requires_grad=True)  # convex: any start will do
    bias = torch.zeros(len(train.classes), requires_grad=True)
    optimizer = torch.optim.SGD([weight, bias], lr=lr)
    milestones = [round(0.6 * epochs), round(0.8 * epochs)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator)
        mirrored = torch.rand(count, 1, generator=generator) < (0.5 if flip else 0.0)
        x = torch.where(mirrored, train.mirrored, train.plain)
        for rows in order.split(batch):
            loss = cross_entropy(x[rows] @ weight.T + bias, train.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    with torch.no_grad():
        logits = test.plain @ weight.T + bias
    if not logits.isfinite().all():
        raise ValueError(f"the linear probe diverged at lr {lr}; give a smaller --lr")
    ranked = logits.argsort(dim=1, descending=True)
    hits = ranked == test.labels[:, None]
    scores = {"linear_top1": 100 * hits[:, 0].float().mean().item()}
    if len(train.classes) > 5:
        scores["linear_top5"] = 100 * hits[:, :5].any(dim=1).float().mean().item()
    return Probe(scores, ranked[:, 0])


def few_shot(
    train: Features, test: Features, *, shots: int, episodes: int = 100, seed: int = 0
) -> dict[str, float]:
    """Classify by the nearest class mean of `shots` labelled images a class, cosine distance.

    Returns "{shots}_shot", the mean accuracy in percent over `episodes` draws of those images.
    Raises ValueError when a class has fewer images.

    Snell et al., 2017, arXiv:1703.05175.
    """
    rng = np.random.default_rng(seed)
    labels = train.labels.numpy()
    members = [np.flatnonzero(labels == label) for label in range(len(train.classes))]
    fewest = min(range(len(members)), key=lambda label: len(members[label]))
    if len(members[fewest]) < shots:
        raise ValueError(
            f"class {train.classes[fewest]} has {len(members[fewest])} training images, "
            f"{shots}-shot needs {shots}"
        )
    x, queries = normalize(train.plain, dim=1), normalize(test.plain, dim=1)
    accuracies = []
    for _ in range(episodes):
        drawn = np.stack([rng.choice(rows, shots, replace=False) for rows in members])  # (C, shots)
        means = normalize(x[torch.from_numpy(drawn)].mean(dim=1), dim=1)
        found = (queries @ means.T).argmax(dim=1)
        accuracies.append((found == test.labels).float().mean().item())
    return {f"{shots}_shot": 100 * float(np.mean(accuracies))}
