"""Metrics against scikit-learn, torchmetrics and a slow loop, on random inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, precision_recall_curve, top_k_accuracy_score
from torchmetrics.functional.classification import multiclass_accuracy

from clsp.evaluate.metrics import accuracy, mean_average_precision, mean_per_class


@pytest.mark.parametrize("seed", range(5))
def test_accuracies_agree_with_scikit_learn_and_torchmetrics(seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(6, 12))
    labels = torch.from_numpy(np.concatenate([np.arange(classes), rng.integers(0, classes, 200)]))
    scores = torch.from_numpy(rng.normal(size=(len(labels), classes)))
    for k in (1, 5):
        expected = top_k_accuracy_score(labels, scores, k=k, labels=range(classes))
        assert accuracy(scores, labels, k) == pytest.approx(100 * expected)
        theirs = multiclass_accuracy(scores, labels, classes, average="micro", top_k=k)
        assert accuracy(scores, labels, k) == pytest.approx(100 * float(theirs), rel=1e-5)
    balanced = balanced_accuracy_score(labels, scores.argmax(dim=1))
    assert mean_per_class(scores, labels) == pytest.approx(100 * balanced)
    theirs = multiclass_accuracy(scores, labels, classes, average="macro")
    assert mean_per_class(scores, labels) == pytest.approx(100 * float(theirs), rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_vocs_of_scikit_learns_curve(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(rng.normal(size=(90, 4)))
    labels = torch.from_numpy(rng.choice([-1, 0, 0, 1], size=(90, 4)).astype(np.int8))
    expected = []
    for score, label in zip(scores.T.numpy(), labels.T.numpy(), strict=True):
        precision, recall, _ = precision_recall_curve(label[label >= 0], score[label >= 0])
        # Their curve ends in a point that no threshold gives: precision 1 at recall 0.
        precision, recall = precision[:-1], recall[:-1]
        at = [precision[recall >= step / 10 - 1e-9].max() for step in range(11)]
        expected.append(np.mean(at))
    assert mean_average_precision(scores, labels) == pytest.approx(100 * np.mean(expected))


def test_what_cannot_be_measured_is_refused() -> None:
    scores, labels = torch.eye(4)[:, :3], torch.tensor([0, 1, 1, 0])
    with pytest.raises(ValueError, match="top-5 accuracy of 3 classes"):
        accuracy(scores, labels, k=5)
    with pytest.raises(ValueError, match="class 2 has no image"):
        mean_per_class(scores, labels)
    with pytest.raises(ValueError, match="class 1 has no positive image"):
        mean_average_precision(scores, torch.tensor([[1, 0, 1]] * 4))
