"""Probes against scikit-learn, slow loops and the protocol they claim to follow."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, confusion_matrix
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

from clsp.evaluate import linear
from clsp.evaluate.config import EvaluateConfig
from clsp.evaluate.features import Features
from clsp.evaluate.knn import KS, knn, knn_predict, split_validation
from clsp.evaluate.linear import few_shot, linear_probe
from clsp.evaluate.probe import probe_encoder


def test_the_linear_probe_finds_what_logistic_regression_finds(
    train_features: Features, test_features: Features
) -> None:
    ours = linear_probe(train_features, test_features, lr=0.3, flip=False)
    theirs = LogisticRegression(C=1e6).fit(train_features.plain, train_features.labels)
    found = theirs.predict(test_features.plain)
    agreement = np.mean(found == ours.predictions.numpy())
    assert agreement > 0.98
    expected = accuracy_score(test_features.labels, ours.predictions)
    assert ours.scores == {"linear_top1": pytest.approx(100 * expected)}


def test_the_schedule_is_the_references(
    train_features: Features, test_features: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []

    class Spy(torch.optim.SGD):
        def step(self, closure=None):
            group = self.param_groups[0]
            rates.append(group["lr"])
            assert (group["momentum"], group["weight_decay"]) == (0, 0)
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "SGD", Spy)
    linear_probe(train_features, test_features)
    assert len(rates) == 100 * 2  # 300 images, batch 256
    assert rates[::2] == pytest.approx([1.0] * 60 + [0.1] * 20 + [0.01] * 20)


def test_flip_uses_both_images_in_equal_shares(
    train_features: Features, test_features: Features
) -> None:
    """With labels that only the mirrored images carry, flip is what makes them learnable."""
    signal = torch.eye(3, 8)[train_features.labels]
    hidden = replace(train_features, plain=torch.zeros_like(signal), mirrored=signal)
    test = replace(test_features, plain=torch.eye(3, 8)[test_features.labels])
    assert linear_probe(hidden, test, flip=True).scores["linear_top1"] == 100
    assert linear_probe(hidden, test, flip=False).scores["linear_top1"] < 40


def test_top5_counts_the_five_best() -> None:
    torch.manual_seed(0)
    labels = torch.arange(240) % 12
    x = torch.eye(12)[labels] + 0.8 * torch.randn(240, 12)
    features = Features(x, x, labels, tuple("abcdefghijkl"))
    scores = linear_probe(features, features, flip=False).scores
    assert scores["linear_top1"] < scores["linear_top5"] <= 100


def test_a_diverging_probe_is_an_error(train_features: Features, test_features: Features) -> None:
    huge = replace(train_features, plain=train_features.plain * 1e20)
    with pytest.raises(ValueError, match=r"diverged at lr 1\.0"):
        linear_probe(huge, replace(test_features, plain=test_features.plain * 1e20), flip=False)


def test_few_shot_with_every_image_is_the_nearest_centroid(
    train_features: Features, test_features: Features
) -> None:
    unit = torch.nn.functional.normalize
    found = few_shot(train_features, test_features, shots=100, episodes=1)
    centroids = NearestCentroid().fit(unit(train_features.plain), train_features.labels).centroids_
    scaled = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    guess = (unit(test_features.plain).numpy() @ scaled.T).argmax(axis=1)
    expected = accuracy_score(test_features.labels, guess)
    assert found == {"100_shot": pytest.approx(100 * expected)}


def test_more_shots_are_better_and_a_seed_repeats(
    train_features: Features, test_features: Features
) -> None:
    one, five = (few_shot(train_features, test_features, shots=n) for n in (1, 5))
    assert 40 < one["1_shot"] < five["5_shot"]
    assert one == few_shot(train_features, test_features, shots=1)
    assert one != few_shot(train_features, test_features, shots=1, seed=1)
    with pytest.raises(ValueError, match="has 100 training images, 101-shot needs 101"):
        few_shot(train_features, test_features, shots=101)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_knn_is_the_weighted_vote_of_scikit_learn(
    train_features: Features, test_features: Features, k: int
) -> None:
    """Cosine distance d = 1 - s, so that exp(s / 0.07) is proportional to exp(-d / 0.07)."""
    theirs = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp(-d / 0.07))
    theirs.fit(train_features.plain, train_features.labels)
    np.testing.assert_array_equal(
        knn_predict(train_features, test_features, k), theirs.predict(test_features.plain)
    )


def test_knn_is_the_papers_sum(train_features: Features, test_features: Features) -> None:
    unit = torch.nn.functional.normalize
    bank, query = unit(train_features.plain), unit(test_features.plain[:1])
    similarity = [float(query[0] @ row) for row in bank]
    nearest = sorted(range(300), key=lambda n: -similarity[n])[:10]
    votes = [0.0] * 3
    for n in nearest:
        votes[int(train_features.labels[n])] += math.exp(similarity[n] / 0.07)
    assert int(knn_predict(train_features, test_features, 10)[0]) == votes.index(max(votes))


def test_k_is_chosen_without_the_test_images(
    train_features: Features, test_features: Features
) -> None:
    fit, validation = split_validation(train_features)
    assert len(validation.labels) == 30
    assert validation.labels.bincount().tolist() == [10, 10, 10]
    together = torch.cat([fit.plain, validation.plain]).sort(dim=0).values
    torch.testing.assert_close(together, train_features.plain.sort(dim=0).values)
    shuffled = replace(test_features, labels=test_features.labels.roll(1))
    honest, wrong = knn(train_features, test_features), knn(train_features, shuffled)
    assert honest["knn_k"] == wrong["knn_k"]
    scores = {k: accuracy_score(validation.labels, knn_predict(fit, validation, k)) for k in KS}
    assert scores[honest["knn_k"]] == max(scores.values())
    found = accuracy_score(
        test_features.labels, knn_predict(train_features, test_features, honest["knn_k"])
    )
    assert honest["knn"] == pytest.approx(100 * found)


def test_all_numbers_of_an_encoder(train_features: Features, test_features: Features) -> None:
    config = EvaluateConfig(shots=(1, 5), episodes=3)
    result = probe_encoder(train_features, test_features, config)
    assert list(result.scores) == ["linear_top1", "1_shot", "5_shot", "knn", "knn_k"]
    probe = linear_probe(train_features, test_features)
    expected = confusion_matrix(test_features.labels, probe.predictions)
    np.testing.assert_array_equal(result.confusion, expected)
    other = replace(test_features, classes=("a", "b", "d"))
    with pytest.raises(ValueError, match=r"classes \['a', 'b', 'c'\].*\['a', 'b', 'd'\]"):
        probe_encoder(train_features, other, config)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"lr": 0.0}, r"lr is 0\.0"),
        ({"shots": ()}, "shots is ()"),
        ({"shots": (0, 1)}, "expected numbers of at least 1"),
        ({"episodes": 0}, "episodes is 0"),
    ],
)
def test_a_config_out_of_range_is_refused(setting: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("()", r"\(\)")):
        EvaluateConfig(**setting)


def test_the_defaults_are_the_references_protocol() -> None:
    config = EvaluateConfig()
    assert (config.lr, config.epochs, config.batch, config.flip) == (1.0, 100, 256, True)
    assert linear_probe.__kwdefaults__ == {
        "lr": config.lr,
        "epochs": config.epochs,
        "batch": config.batch,
        "flip": True,
        "seed": 0,
    }
    assert linear.Probe._fields == ("scores", "predictions")
