"""Linear and few-shot probes: two `Features` in, numbers out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize

from ..recipes import progress
from .features import Features
from .metrics import accuracy
from .split import check_labels, split_validation

# 45 values, as in Kornblith et al., 2019, arXiv:1805.08974, and Chen et al., 2020.
STRENGTHS = tuple(float(value) for value in np.logspace(-6, 5, 45))


class Probe(NamedTuple):
    """What a probe found: scores in percent by name, and its logits for the test images (N, C)."""

    scores: dict[str, float]
    logits: Tensor

    @property
    def predictions(self) -> Tensor:
        """The class of each test image, (N,)."""
        return self.logits.argmax(dim=1)


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
    Raises ValueError for labels that cannot be learned, and when the probe diverges.
    """
    check_labels(train, "the linear probe")
    both = train.plain
    if flip:
        if train.mirrored is None:
            raise ValueError("the linear probe with flip needs features of the mirror images")
        both = torch.cat([train.plain, train.mirrored])
    generator = torch.Generator().manual_seed(seed)
    count, width = train.plain.shape
    weight = both.new_zeros(len(train.classes), width).requires_grad_()  # convex: any start will do
    bias = both.new_zeros(len(train.classes)).requires_grad_()
    optimizer = torch.optim.SGD([weight, bias], lr=lr)
    milestones = [round(0.6 * epochs), round(0.8 * epochs)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
    with progress(epochs, "linear probe", "epoch") as bar:
        for _ in range(epochs):
            order = torch.randperm(count, generator=generator)
            mirrored = torch.rand(count, generator=generator) < (0.5 if flip else 0.0)
            places = (order + count * mirrored).to(both.device)  # in `both`
            labels = train.labels[order.to(both.device)]
            for rows, targets in zip(places.split(batch), labels.split(batch), strict=True):
                loss = cross_entropy(both[rows] @ weight.T + bias, targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()
            bar.update()
    with torch.no_grad():
        logits = test.plain @ weight.T + bias
    if not logits.isfinite().all():
        raise ValueError(f"the linear probe diverged at lr {lr}; give a smaller --lr")
    scores = {"linear_top1": accuracy(logits, test.labels)}
    if len(train.classes) > 5:
        scores["linear_top5"] = accuracy(logits, test.labels, k=5)
    return Probe(scores, logits)


def lbfgs_probe(
    train: Features,
    test: Features,
    *,
    validation: Features | None = None,
    metric: Callable[[Tensor, Tensor], float] = accuracy,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
) -> Probe:
    """Fit logistic regression to frozen features by L-BFGS and test it; no augmentation.

    The strength of its L2 penalty is the best by `metric` on `validation`, by default a split of
    `train`, the strongest of equals; then it is fitted to both parts. Images with several labels
    get one logistic regression a class.
    Scores: "lbfgs", the metric on `test`, and "lbfgs_l2", the strength: the loss is the mean
    cross-entropy + strength / 2 * the weights' squared norm.
    Raises ValueError for labels that cannot be learned, and for a class that a part would miss.

    Kornblith et al., 2019, arXiv:1805.08974; Chen et al., 2020, arXiv:2002.05709.
    """
    fit, held_out = split_validation(train, seed) if validation is None else (train, validation)
    check_labels(fit, "the linear probe")
    best, state = (-1.0, 0.0, train.plain), None
    with progress(len(strengths), "L-BFGS probe", "fit") as bar:
        for strength in sorted(strengths, reverse=True):  # each fit starts from the one before
            state = fit_logistic(fit, strength, state)
            found = metric(_logits(held_out, state), held_out.labels)
            if found > best[0]:
                best = (found, strength, state)
            bar.update()
    _, strength, state = best
    logits = _logits(test, fit_logistic(fit.join(held_out), strength, state))
    return Probe({"lbfgs": metric(logits, test.labels), "lbfgs_l2": strength}, logits)


def _logits(features: Features, state: Tensor) -> Tensor:
    return features.plain @ state[:, :-1].T + state[:, -1]


def fit_logistic(train: Features, strength: float, start: Tensor | None = None) -> Tensor:
    """Return weights and, in the last column, biases (C, F + 1) of L2-regularised regression.

    start: where to begin, by default at 0. It is multinomial, or one regression a class where
    images have several labels.
    """
    x, labels, width = train.plain, train.labels, train.plain.shape[1]
    state = x.new_zeros(len(train.classes), width + 1) if start is None else start.clone()
    state.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [state], max_iter=200, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = _logits(train, state)
        if labels.ndim == 1:
            loss = cross_entropy(logits, labels)
        else:
            known = (labels >= 0).to(x.dtype)
            loss = binary_cross_entropy_with_logits(logits, (labels == 1).to(x.dtype), known)
        loss = loss + strength / 2 * state[:, :-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return state.detach()


def few_shot(
    train: Features, test: Features, *, shots: int, episodes: int = 100, seed: int = 0
) -> dict[str, float]:
    """Classify by the nearest class mean of `shots` labelled images a class, cosine distance.

    Returns "{shots}_shot", the mean accuracy in percent over `episodes` draws of those images.
    Raises ValueError when a class has fewer images.

    Snell et al., 2017, arXiv:1703.05175.
    """
    rng = np.random.default_rng(seed)
    labels = train.labels.cpu().numpy()
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
        means = normalize(x[torch.from_numpy(drawn).to(x.device)].mean(dim=1), dim=1)
        found = (queries @ means.T).argmax(dim=1)
        accuracies.append((found == test.labels).float().mean().item())
    return {f"{shots}_shot": 100 * float(np.mean(accuracies))}
