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

from clsp.evaluate.config import KS, TEMPERATURES, EvaluateConfig
from clsp.evaluate.features import Features
from clsp.evaluate.knn import knn, knn_predict
from clsp.evaluate.linear import (
    STRENGTHS,
    few_shot,
    fit_logistic,
    lbfgs_probe,
    linear_probe,
)
from clsp.evaluate.neighbours import largest
from clsp.evaluate.probe import probe_encoder
from clsp.evaluate.split import split_validation


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


def test_flip_without_features_of_mirror_images_is_refused(
    train_features: Features, test_features: Features
) -> None:
    with pytest.raises(ValueError, match="needs features of the mirror images"):
        linear_probe(replace(train_features, mirrored=None), test_features)


@pytest.mark.parametrize("strength", [1e-4, 1e-2, 1.0])
def test_lbfgs_finds_the_minimum_that_scikit_learn_finds(
    train_features: Features, strength: float
) -> None:
    theirs = LogisticRegression(C=1 / (300 * strength), tol=1e-8, max_iter=1000)
    theirs.fit(train_features.plain.double(), train_features.labels)
    state = fit_logistic(train_features, strength)
    np.testing.assert_allclose(state[:, :-1], theirs.coef_, atol=5e-3)
    bias = state[:, -1] - state[:, -1].mean()
    np.testing.assert_allclose(bias, theirs.intercept_ - theirs.intercept_.mean(), atol=5e-3)


def test_the_penalty_is_chosen_of_45_without_the_test_images(
    train_features: Features, test_features: Features
) -> None:
    assert len(STRENGTHS) == 45
    np.testing.assert_allclose(np.diff(np.log10(STRENGTHS)), 0.25)
    shuffled = replace(test_features, labels=test_features.labels.roll(1))
    honest, wrong = (lbfgs_probe(train_features, t) for t in (test_features, shuffled))
    assert honest.scores["lbfgs_l2"] == wrong.scores["lbfgs_l2"]
    fit, validation = split_validation(train_features)
    scores = []
    for strength in STRENGTHS:
        theirs = LogisticRegression(C=1 / (len(fit.labels) * strength), max_iter=1000)
        scores.append(theirs.fit(fit.plain, fit.labels).score(validation.plain, validation.labels))
    at = int(np.argmin(np.abs(np.array(STRENGTHS) - honest.scores["lbfgs_l2"])))
    assert scores[at] >= max(scores) - 1 / 30  # one image of the validation split
    assert honest.scores["lbfgs"] > 70


def test_lbfgs_of_several_labels_is_one_regression_a_class(train_features: Features) -> None:
    several = torch.stack([train_features.labels == n for n in range(3)], dim=1).to(torch.int8)
    several[:, 0] |= (train_features.plain[:, 5] > 0.5).to(torch.int8)
    several[:50, 1] = -1  # these say nothing of class 1
    state = fit_logistic(replace(train_features, labels=several), 0.01)
    for number, rows in enumerate((slice(0, None), slice(50, None), slice(0, None))):
        # The mean is over all pairs of image and class, so the penalty is 3 * 300 times it.
        theirs = LogisticRegression(C=1 / (900 * 0.01), tol=1e-8, max_iter=1000)
        theirs.fit(train_features.plain[rows], several[rows, number])
        np.testing.assert_allclose(state[number, :-1], theirs.coef_[0], atol=5e-3)


def test_labels_that_cannot_be_learned_are_refused(
    train_features: Features, test_features: Features
) -> None:
    gap = replace(train_features, labels=train_features.labels.where(train_features.labels != 1, 2))
    one = Features(train_features.plain, None, torch.zeros(300, dtype=torch.int64), ("a",))
    outside = replace(train_features, labels=train_features.labels + 1)
    single = train_features.select(torch.tensor([0, 1, 2, 3, 4, 6, 7]))  # one "c"
    for probe in (linear_probe, lbfgs_probe, knn):
        with pytest.raises(ValueError, match="not contiguous, 1 of 3 classes have no image: b"):
            probe(gap, test_features)
        with pytest.raises(ValueError, match=r"needs at least 2 classes, found \['a'\]"):
            probe(one, one)
        with pytest.raises(ValueError, match="label 3 of 3 classes"):
            probe(outside, test_features)
    for probe in (lbfgs_probe, knn):
        with pytest.raises(ValueError, match="class c has 1 training image"):
            probe(single, test_features)


def test_k_above_the_training_size_is_refused(
    train_features: Features, test_features: Features
) -> None:
    with pytest.raises(ValueError, match="kNN with k = 301, but there are 300 training images"):
        knn_predict(train_features, test_features, 301)
    with pytest.raises(ValueError, match="k of 271, 400, but 270 training images are left"):
        knn(train_features, test_features, ks=(271, 400))
    assert knn(train_features, test_features, ks=(270, 400))["knn_k"] == 270


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


@pytest.mark.parametrize(("count", "k"), [(1, 1), (7, 7), (100, 3), (333, 10), (4000, 100)])
@pytest.mark.parametrize("ties", [False, True])
def test_the_largest_by_blocks_are_the_largest_of_all(count: int, k: int, ties: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5, count, generator=generator)
    values = values.round() if ties else values
    found, columns = largest(values, k)
    assert torch.equal(found, values.sort(dim=1, descending=True).values[:, :k])
    assert torch.equal(values.gather(1, columns), found)
    assert all(len(set(row)) == k for row in columns.tolist())


def test_knn_is_the_papers_sum(train_features: Features, test_features: Features) -> None:
    unit = torch.nn.functional.normalize
    bank, query = unit(train_features.plain), unit(test_features.plain[:1])
    similarity = [float(query[0] @ row) for row in bank]
    nearest = sorted(range(300), key=lambda n: -similarity[n])[:10]
    votes = [0.0] * 3
    for n in nearest:
        votes[int(train_features.labels[n])] += math.exp(similarity[n] / 0.07)
    assert int(knn_predict(train_features, test_features, 10)[0]) == votes.index(max(votes))


def test_k_and_temperature_are_chosen_without_the_test_images(
    train_features: Features, test_features: Features
) -> None:
    fit, validation = split_validation(train_features)
    assert len(validation.labels) == 30
    assert validation.labels.bincount().tolist() == [10, 10, 10]
    together = torch.cat([fit.plain, validation.plain]).sort(dim=0).values
    torch.testing.assert_close(together, train_features.plain.sort(dim=0).values)
    shuffled = replace(test_features, labels=test_features.labels.roll(1))
    honest, wrong = knn(train_features, test_features), knn(train_features, shuffled)
    chosen = (honest["knn_k"], honest["knn_t"])
    assert chosen == (wrong["knn_k"], wrong["knn_t"])
    scores = {
        (k, t): accuracy_score(validation.labels, knn_predict(fit, validation, k, t))
        for k in KS
        for t in TEMPERATURES
    }
    assert scores[chosen] == max(scores.values())
    found = accuracy_score(
        test_features.labels, knn_predict(train_features, test_features, *chosen)
    )
    assert honest["knn"] == pytest.approx(100 * found)


def test_all_numbers_of_an_encoder(train_features: Features, test_features: Features) -> None:
    config = EvaluateConfig(shots=(1, 5), episodes=3)
    result = probe_encoder(train_features, test_features, config)
    assert list(result.scores) == [
        "linear_top1",
        "lbfgs",
        "lbfgs_l2",
        "1_shot",
        "5_shot",
        "knn",
        "knn_k",
        "knn_t",
    ]
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
        ({"ks": (0, 5)}, "ks is .0, 5., expected numbers of at least 1"),
        ({"temperatures": (0.0,)}, "temperatures is .0.0,., expected numbers above 0"),
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
