"""What of the CIFAR-10 experiment fits into some minutes: integers and seconds only.

The speeds are measured beforehand; everything here is a pure function of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

# Of the time there is: the model makes or breaks the positives, the encoders make the comparison.
FIT, GENERATE, TRAIN = 0.4, 0.2, 0.35
FIRST = ("simclr", "simclr-aug", "clsp-simclr")  # with every seed
THEN = ("clsp-simclr-warmup", "clsp-moco", "moco", "supcon")  # with the first, as time allows
# Passes over the images below which a smaller U-Net gives better samples than a larger one.
LEAST_PASSES = 30


@dataclass(frozen=True)
class Speeds:
    """Seconds of each stage's unit of work on this machine.

    fit: a training image, by the U-Net's width; sample: a U-Net call on one image, by width;
    train: a tuple of one epoch with three views; features: an image of an evaluation.
    """

    fit: Mapping[int, float]
    sample: Mapping[int, float]
    train: float
    features: float


@dataclass(frozen=True)
class Budget:
    """What fits. seconds: what each stage is expected to take."""

    width: int
    fit_steps: int
    positives: int
    sample_steps: int
    epochs: int
    seconds: dict[str, float]


def plan_budget(
    seconds: float,
    speeds: Speeds,
    *,
    anchors: int,
    probed: int,
    seeds: int,
    batch: int,
    fit: bool = True,
    generate: bool = True,
) -> Budget:
    """Return what to do in `seconds`, for `anchors` images and `probed` images of an evaluation.

    batch: images a step of the diffusion model. fit, generate: False where that stage's result
    is there already; its share then goes to the other stages.
    Raises ValueError when not even one epoch of the first arms fits.
    """
    arms = len(FIRST) * seeds
    probes = arms * 2 * probed * speeds.features
    shares = {"fit": FIT * fit, "generate": GENERATE * generate, "train": TRAIN}
    left = seconds * 0.95 - probes
    share = {name: left * part / sum(shares.values()) for name, part in shares.items()}

    width = min(speeds.fit)
    for wider in sorted(speeds.fit):
        if share["fit"] / speeds.fit[wider] >= LEAST_PASSES * anchors:
            width = wider
    fit_steps = max(1, int(share["fit"] / (speeds.fit[width] * batch))) if fit else 0

    # An anchor costs its K positives' calls and about half a call of its own at each step.
    calls = share["generate"] / speeds.sample[width] / anchors
    choices = [(k, steps) for steps in (20, 10, 5) for k in (4, 2, 1)]
    fitting = [(k, steps) for k, steps in choices if steps * (k + 0.5) <= calls]
    positives, sample_steps = fitting[0] if fitting else choices[-1]

    # A quarter of the encoders' time is for the further arms.
    epoch = speeds.train * anchors
    epochs = min(1000, math.floor(0.75 * share["train"] / (arms * epoch)))
    if epochs < 1:
        needed = arms * epoch / 0.75 / TRAIN
        raise ValueError(
            f"one epoch of {arms} encoders does not fit into {seconds / 60:.1f} minutes here; "
            f"about {needed / 60 + probes / 60:.1f} are needed"
        )
    return Budget(
        width,
        fit_steps,
        positives,
        sample_steps,
        epochs,
        {
            "fit": fit_steps * batch * speeds.fit[width] if fit else 0.0,
            "generate": anchors
            * sample_steps
            * (positives + 0.5)
            * speeds.sample[width]
            * generate,
            "arm": epochs * epoch + 2 * probed * speeds.features,
        },
    )
