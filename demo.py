"""`clsp demo`: every stage on 8x8 digits, from nothing to a report, in minutes on a CPU.

It asks the paper's question in small: does an encoder that is also pulled towards synthetic
positives need fewer labels? The control gets a third real view in the positive's place.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .recipes import load_recipe

if TYPE_CHECKING:
    from .evaluate.probe import Result

ARMS = {
    "SimCLR": "none",
    "SimCLR, third real view": "real",
    "CLSP-SimCLR": "synthetic",
}
FIT_STEPS, EPOCHS = 1000, 40
POSITIVES = {"positives": 4, "scheduler": "dpm-sde", "steps": 12, "shard_size": 180}
# Strong crops only: a mirrored digit is another one, and the images have no colour.
TRAINING: dict[str, Any] = {
    "arch": "conv-tiny",
    "hidden": 256,
    "dim": 64,
    "batch": 64,
    "lr": 0.05,
    "lr_warmup": 1,
    "schedule": "step",
    "lambda_warmup": 5,
    "temperature": 0.4,
    "crop_min": 0.3,
    "jitter_p": 0.0,
    "grey_p": 0.0,
    "flip_p": 0.0,
    "mean": (0.3, 0.3, 0.3),
    "std": (0.37, 0.37, 0.37),
    "save_every": 1000,
    "log_every": 44,
}


@click.command()
@click.option("--out", default="clsp-demo", show_default=True, type=click.Path(path_type=Path))
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(min=1))
@click.option("--fit-steps", default=FIT_STEPS, show_default=True, type=click.IntRange(min=1))
@click.option("--epochs", default=EPOCHS, show_default=True, type=click.IntRange(min=1))
@click.option("--workers", type=click.IntRange(min=1), help="Processes; default: cores.")
def main(out: Path, seeds: int, fit_steps: int, epochs: int, workers: int | None) -> None:
    """Make positives of 1,797 digits, train on them, and report whether they help.

    Stopped at any moment, the same command goes on.
    """
    try:
        demo(out, seeds=seeds, fit_steps=fit_steps, epochs=epochs, workers=workers)
    except (ValueError, OSError, RuntimeError) as error:
        raise click.ClickException(str(error)) from error


def demo(
    out: Path,
    *,
    seeds: int = 3,
    fit_steps: int = FIT_STEPS,
    epochs: int = EPOCHS,
    workers: int | None = None,
) -> Path:
    """Run every stage into the folder `out`; return the report's path."""
    from .generate.config import FitConfig, GenerateConfig
    from .generate.fit import RECIPES, fit
    from .generate.run import generate

    _start_fork_server()
    workers = workers or len(os.sched_getaffinity(0))
    began = time.monotonic()
    recipe: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in load_recipe("fit-digits", RECIPES).items()
    }
    click.echo("1/4 a diffusion model of the digits", err=True)
    fit(FitConfig(**{**recipe, "steps": fit_steps, "sample_every": fit_steps}), out / "model")
    click.echo("2/4 four positives for each digit", err=True)
    sampling = GenerateConfig(**POSITIVES)  # type: ignore[arg-type]
    for part in ("train", "test"):
        generate(
            sampling,
            f"digits:{part}",
            str(out / "model"),
            out / "positives" / part,
            device="cpu",
            workers=workers,
        )
    click.echo("3/4 three arms of training, each with every seed", err=True)
    jobs = [(out, name, seed, epochs) for seed in range(seeds) for name in ARMS]
    # Not a fork of this process, whose torch has threads. One thread each: they fill the cores.
    context = multiprocessing.get_context("forkserver")
    with context.Pool(min(workers, len(jobs))) as pool:
        results = pool.starmap(_run_arm, jobs, chunksize=1)
        pool.close()  # ended by a signal, a worker would leave its progress bar's semaphore behind
        pool.join()
    click.echo("4/4 the report", err=True)
    by_arm = {name: tuple(results[n :: len(ARMS)]) for n, name in enumerate(ARMS)}
    report = _report(out, by_arm, time.monotonic() - began)
    click.echo(f"{report}  ({(time.monotonic() - began) / 60:.1f} min)")
    return report


def _start_fork_server() -> None:
    """Let the process that others are forked from import its modules beside the first stage."""
    from multiprocessing import forkserver

    multiprocessing.set_forkserver_preload(["clsp.generate.job", "clsp.train.loop"])
    forkserver.ensure_running()


def _run_arm(out: Path, name: str, seed: int, epochs: int) -> Result:
    """Train one arm with one seed and probe it."""
    import torch

    from .evaluate.__main__ import read_curves
    from .evaluate.config import EvaluateConfig
    from .evaluate.features import compute_features
    from .evaluate.probe import probe_encoder
    from .shards.images import open_images
    from .train import load_encoder
    from .train.config import TrainConfig
    from .train.loop import train
    from .train.options import RunOptions

    torch.set_num_threads(1)
    config = TrainConfig(positive=ARMS[name], seed=seed, epochs=epochs, **TRAINING)  # type: ignore[arg-type]
    run = out / "runs" / f"{ARMS[name]}-{seed}"
    encoder = load_encoder(
        train(
            config,
            out / "positives" / "train",
            run,
            cache=out / "cache",
            options=RunOptions(layout="channels_last"),  # a third faster for so small a network
        )
    )
    fitted, tested = (
        compute_features(encoder, open_images(f"digits:{part}"), keep=out / "cache", mirrored=False)
        for part in ("train", "test")
    )
    return probe_encoder(
        fitted, tested, EvaluateConfig(flip=False, lbfgs=False, seed=seed), read_curves(run)
    )


def agreement(positives: Path) -> tuple[float, float]:
    """Return how often a kNN on the pixels of other digits reads (positives, anchors) as the label.

    positives: the shard set of the held-out digits; both in percent.
    """
    import numpy as np
    from sklearn.neighbors import KNeighborsClassifier

    from .shards.images import load_pixels, open_images
    from .shards.preview import read_tuples
    from .shards.store import open_set

    source = open_images("digits:train")
    assert source.labels is not None
    reader = KNeighborsClassifier(3).fit(_flat(load_pixels(source)), source.labels)
    shards = open_set(positives)
    anchors, synthetic = read_tuples(shards, range(len(shards)))
    labels = np.array([shards.record(n).meta["label"] for n in range(len(shards))])
    read = reader.predict(_flat(synthetic.reshape(-1, *synthetic.shape[2:])))
    agree = (read.reshape(len(labels), -1) == labels[:, None]).mean()
    return 100 * float(agree), 100 * float(reader.score(_flat(anchors), labels))


def _flat(pixels: Any) -> Any:
    return pixels.mean(axis=-1).reshape(len(pixels), -1)


def _report(out: Path, by_arm: dict[str, tuple[Result, ...]], seconds: float) -> Path:
    from .evaluate.about import commit, hardware
    from .evaluate.report import Arm, Report, write_report
    from .shards.files import write_atomic
    from .shards.preview import preview_png
    from .shards.store import open_set

    shards = open_set(out / "positives" / "train")
    of_positives, of_anchors = agreement(out / "positives" / "test")
    scores = {name: [r.scores for r in results] for name, results in by_arm.items()}
    values = {"scores": scores, "agreement": of_positives, "seconds": seconds}
    write_atomic(out / "results.json", (json.dumps(values, indent=2) + "\n").encode())
    report = Report(
        title="clsp demo: digits",
        lead="Three ways of contrastive pretraining on 1,438 digits of 8x8, probed on 359 others. "
        "A plain kNN is saturated; few labels are what tells the arms apart.",
        arms=[Arm(name, results) for name, results in by_arm.items()],
        classes=[str(digit) for digit in range(10)],
        about={
            "positives": json.dumps(POSITIVES),
            "training": json.dumps(TRAINING),
            "set": shards.id,
            "time": f"{seconds:.0f} s in all",
            "commit": commit(),
            "hardware": hardware(),
        },
        main="1_shot",
        sheets={"Digits and their positives, one row each": preview_png(shards)},
        notes=(
            f"Of the positives of held-out digits, {of_positives:.0f} % are read as the anchor's "
            f"digit by a kNN on pixels, which reads {of_anchors:.0f} % of the anchors rightly.",
            "The settings, the same for all arms, were found with these held-out digits in view.",
        ),
    )
    write_report(out / "report.html", report)
    return out / "report.html"


if __name__ == "__main__":
    main()
