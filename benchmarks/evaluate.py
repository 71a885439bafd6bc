"""How fast an encoder is evaluated.

    python -m benchmarks.evaluate --images folder:train --test folder:test

Linear probe: on kept features of both flips, against a baseline that reads the images and runs the
encoder again in each epoch, as the reference implementation does, and tests after each, as
solo-learn does; what the baseline takes without those tests is given too. The two are measured in
turn and medians are compared. The baseline's time is extrapolated from a few epochs, which are all
alike; whole runs with a small encoder show that both are equally accurate. kNN: 10,000 against
50,000 features of 512, and its memory. Features: the share of the time that reading and decoding
take.
"""

from __future__ import annotations

import resource
import statistics
import time
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from torch.nn.functional import cross_entropy

from clsp.evaluate.features import Features, compute_features
from clsp.evaluate.knn import knn_predict
from clsp.evaluate.linear import linear_probe
from clsp.evaluate.neighbours import products
from clsp.shards.images import ImageSource, fit_square, open_images
from clsp.train.config import TrainConfig
from clsp.train.encoder import Encoder, build_backbone

from .common import report

EPOCHS = 100


class Part:
    """Some images of a source, spread evenly over it."""

    def __init__(self, source: ImageSource, count: int) -> None:
        assert source.labels is not None
        self._source = source
        self._rows = np.linspace(0, len(source) - 1, count).astype(int)
        self.spec, self.classes = f"{source.spec}, {count} images", source.classes
        self.labels: Any = source.labels[self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, index: int) -> str:
        return self._source.key(int(self._rows[index]))

    def path(self, index: int) -> str:
        return self._source.path(int(self._rows[index]))

    def read(self, index: int) -> Any:
        return self._source.read(int(self._rows[index]))

    def file_sha256(self, index: int) -> str | None:
        return self._source.file_sha256(int(self._rows[index]))


def make_encoder(arch: str, width: int, part: Part) -> Encoder:
    """Return a random encoder whose batch norm has seen some of the images."""
    torch.manual_seed(0)
    backbone = build_backbone(arch, "cifar")
    about = {
        "config": {"mean": TrainConfig.mean, "std": TrainConfig.std},
        "image_size": 32,
        "feature_dim": width,
    }
    encoder = Encoder(backbone, about, "0" * 64, arch)
    with torch.no_grad():
        for start in range(0, 256, 64):
            backbone(read_batch(part, range(start, start + 64), encoder))
    return encoder.eval()


def read_batch(part: Part, rows: Any, encoder: Encoder) -> torch.Tensor:
    """Return normalised images (B, 3, S, S), read one by one as the reference does."""
    images = [np.array(fit_square(part.read(int(row)), encoder.image_size)) for row in rows]
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (encoder.mean, encoder.std))
    return (x - mean) / std


class Baseline(NamedTuple):
    """Seconds an epoch, seconds of its test that are part of it, and accuracy after the last."""

    seconds: float
    testing: float
    top1: float


def baseline(encoder: Encoder, train: Part, test: Part, epochs: int, seed: int) -> Baseline:
    """Run the probe that computes features anew."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.zeros(len(train.classes or ()), encoder.feature_dim, requires_grad=True)
    bias = torch.zeros(len(weight), requires_grad=True)
    optimizer = torch.optim.SGD([weight, bias], lr=1.0)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [60, 80])
    labels = torch.from_numpy(np.asarray(train.labels))
    testing, began = 0.0, time.perf_counter()
    for _ in range(epochs):
        for rows in torch.randperm(len(train), generator=generator).split(256):
            x = read_batch(train, rows, encoder)
            flip = torch.rand(len(x), generator=generator) < 0.5
            with torch.no_grad():
                features = encoder(torch.where(flip.view(-1, 1, 1, 1), x.flip(3), x))
            loss = cross_entropy(features @ weight.T + bias, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        trained = time.perf_counter()
        with torch.no_grad():
            parts = torch.arange(len(test)).split(256)
            x = torch.cat([encoder(read_batch(test, rows, encoder)) for rows in parts])
            found = (x @ weight.T + bias).argmax(dim=1)
        top1 = 100 * float((found == torch.from_numpy(test.labels)).float().mean())
        testing += time.perf_counter() - trained
    return Baseline((time.perf_counter() - began) / epochs, testing / epochs, top1)


def kept(encoder: Encoder, train: Part, test: Part, seed: int) -> tuple[float, float]:
    """Return the seconds and the accuracy of the probe on kept features, from images to the end."""
    began = time.perf_counter()
    features = [compute_features(encoder, part, mirrored=part is train) for part in (train, test)]
    scores = linear_probe(features[0], features[1], epochs=EPOCHS, seed=seed).scores
    return time.perf_counter() - began, scores["linear_top1"]


def measure_knn() -> dict[str, float]:
    """Return seconds and memory of 10,000 queries against 50,000 features of 512, k = 200."""
    generator = torch.Generator().manual_seed(0)
    classes = tuple("0123456789")

    def draw(count: int) -> Features:
        x = torch.randn(count, 512, generator=generator)
        return Features(x, None, torch.arange(count) % 10, classes)

    train, test = draw(50_000), draw(10_000)
    knn_predict(train, test.select(slice(0, 512)), 200)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        knn_predict(train, test, 200)
        seconds.append(time.perf_counter() - began)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # What no exact search by brute force can be faster than: the product alone.
    began = time.perf_counter()
    for part in test.plain.split(1024):
        products(part, train.plain)
    product = time.perf_counter() - began
    return {
        "seconds": statistics.median(seconds),
        "seconds_of_the_matrix_product_alone": product,
        "peak_memory_of_process_mib": after / 1024,
        "more_memory_than_the_first_512_queries_mib": (after - before) / 1024,
    }


@click.command()
@click.option("--images", required=True, help="Labelled images to fit on.")
@click.option("--test", "tested", required=True, help="Labelled images to test on.")
@click.option("--count", default=512, show_default=True, help="Images to fit on.")
@click.option("--epochs", default=2, show_default=True, help="Epochs of the baseline to measure.")
@click.option("--seeds", default=3, show_default=True, help="Whole runs with the small encoder.")
@click.option("--rounds", default=3, show_default=True, help="Measurements of each, in turn.")
def main(images: str, tested: str, count: int, epochs: int, seeds: int, rounds: int) -> None:
    """Measure the evaluation, and keep benchmarks/results/evaluate.json."""
    train, test = Part(open_images(images), count), Part(open_images(tested), count // 5)
    encoder = make_encoder("resnet18", 512, train)
    ours, each = [], []
    for _ in range(rounds):
        ours.append(kept(encoder, train, test, 0)[0])
        each.append(baseline(encoder, train, test, epochs, 0))
    seconds = statistics.median(ours)
    whole = statistics.median(round_.seconds for round_ in each)
    untested = statistics.median(round_.seconds - round_.testing for round_ in each)
    small = make_encoder("conv-tiny", 512, train)
    accuracies = {
        "kept": [kept(small, train, test, seed)[1] for seed in range(seeds)],
        "baseline": [baseline(small, train, test, EPOCHS, seed).top1 for seed in range(seeds)],
    }
    began = time.perf_counter()
    for index in range(len(train)):
        fit_square(train.read(index), 32)
    decoding = time.perf_counter() - began
    began = time.perf_counter()
    compute_features(encoder, train, mirrored=False)
    reading = time.perf_counter() - began
    report(
        "evaluate",
        {
            "linear": {
                "encoder": "resnet18 at 32x32, float32",
                "images": [len(train), len(test)],
                "epochs": EPOCHS,
                "rounds": rounds,
                "kept_seconds": seconds,
                "baseline_seconds_an_epoch": whole,
                "baseline_seconds_extrapolated": whole * EPOCHS,
                "baseline_epochs_measured": epochs,
                "times": whole * EPOCHS / seconds,
                "times_without_a_test_after_each_epoch": untested * EPOCHS / seconds,
                "top1_of_whole_runs_with_conv_tiny": accuracies,
            },
            "knn": measure_knn(),
            "features": {
                "seconds": reading,
                "seconds_of_reading_and_decoding": decoding,
                "share_of_reading_and_decoding": decoding / reading,
            },
        },
    )


if __name__ == "__main__":
    main()
