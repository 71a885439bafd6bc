"""All numbers of one encoder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .config import EvaluateConfig
from .features import Features
from .knn import knn
from .linear import few_shot, lbfgs_probe, linear_probe


@dataclass(frozen=True)
class Result:
    """What was measured of one encoder.

    scores: accuracies in percent by name; confusion: (C, C) counts of the linear probe, rows the
    true class; curves: the rows of the run's metrics.jsonl, if there are any.
    """

    scores: dict[str, float]
    confusion: np.ndarray
    curves: tuple[dict[str, float], ...] = ()


def probe_encoder(
    train: Features,
    test: Features,
    config: EvaluateConfig,
    curves: tuple[dict[str, float], ...] = (),
) -> Result:
    """Return linear, few-shot and kNN accuracy of an encoder's features.

    They are computed where the features lie. Raises ValueError when train and test have other
    classes, or too few images of one.
    """
    if train.classes != test.classes:
        raise ValueError(
            f"the training images have classes {list(train.classes)}, the test images "
            f"{list(test.classes)}"
        )
    linear = linear_probe(
        train,
        test,
        lr=config.lr,
        epochs=config.epochs,
        batch=config.batch,
        flip=config.flip,
        seed=config.seed,
    )
    scores = dict(linear.scores)
    if config.lbfgs:
        scores |= lbfgs_probe(train, test, seed=config.seed).scores
    for shots in config.shots:
        scores |= few_shot(train, test, shots=shots, episodes=config.episodes, seed=config.seed)
    scores |= knn(train, test, config.seed, ks=config.ks, temperatures=config.temperatures)
    confusion = np.zeros((len(test.classes),) * 2, np.int64)
    np.add.at(confusion, (test.labels.cpu().numpy(), linear.predictions.cpu().numpy()), 1)
    return Result(scores, confusion, curves)
