"""Does it work? The paper's CIFAR-10 comparison in the minutes that there are, in one command.

    python -m benchmarks.cifar10 --images DIR --minutes 30 --out runs/cifar10

DIR has the class folders train/CLASS/*.jpg and test/CLASS/*.jpg. A diffusion model is fitted,
positives are made of every training image, the arms are pretrained for equal epochs with equal
batches and seeds, and each encoder is probed. What fits is planned from a probe of the machine's
speed and kept in OUT/plan.json. Each stage is a command of clsp that goes on where it stopped, and
so does this one. OUT/cifar10.json and OUT/report.html hold the result.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from clsp.evaluate.__main__ import read_curves
from clsp.evaluate.distances import frechet_distance
from clsp.evaluate.positives import set_features
from clsp.evaluate.probe import Result
from clsp.evaluate.report import Arm, Report, write_report
from clsp.generate.config import FitConfig
from clsp.generate.ddpm import build_unet
from clsp.shards.files import write_atomic
from clsp.shards.images import ImageSource, open_images
from clsp.shards.preview import preview_png
from clsp.shards.store import open_set
from clsp.train.config import TrainConfig
from clsp.train.encoder import ProjectedEncoder, load_encoder

from .cifar10_plan import FIRST, THEN, Budget, Speeds, plan_budget
from .common import alternate, report

GPU = torch.cuda.is_available()
WIDTHS = (64, 96, 128) if GPU else (16, 32)
FIT_BATCH = 256 if GPU else 16
# The reference's batches are 1024 and 512; few epochs want steps, and equal arms one batch.
BATCH = 512 if GPU else 32
SMALL: dict[str, Any] = {} if GPU else {"arch": "conv-tiny", "hidden": 64, "dim": 32}
QUEUE = 32 * BATCH
PROBED = ("linear_top1", "knn")
# The paper's linear top-1 with ResNet-18 after 100 and 1000 epochs (arXiv:2408.16965).
PAPER = {
    "simclr": (84.0, 91.5),
    "clsp-simclr": (87.3, 94.5),
    "moco": (85.3, 92.3),
    "clsp-moco": (85.5, 94.6),
}


def unet_flags(width: int) -> dict[str, Any]:
    """Return the U-Net's shape: the reference's at any width on a GPU, a small one on a CPU."""
    shape: dict[str, Any] = {"image_size": 32, "channels": width, "groups": 16, "blocks": 2}
    if GPU:
        return shape | {"channel_mult": (1, 2, 2, 2), "attention": (1,)}
    return shape | {"channel_mult": (1, 2), "attention": (), "mid_attention": False, "blocks": 1}


def measure_speeds() -> Speeds:
    """Return this machine's seconds for each stage's unit of work, from a few steps of each."""
    device = torch.device("cuda" if GPU else "cpu")

    def seconds(task: Any, units: int) -> float:
        def run() -> None:
            task()
            if GPU:
                torch.cuda.synchronize()

        return alternate({"task": run})["task"] / units

    fit, sample = {}, {}
    for width in WIDTHS:
        unet = build_unet(FitConfig(images="", dropout=0.0, **unet_flags(width))).to(device)
        x, t = torch.randn(FIT_BATCH, 3, 32, 32, device=device), torch.tensor(500, device=device)

        def step(unet: Any = unet, x: Any = x, t: Any = t) -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=GPU):
                unet(x, t).sample.square().mean().backward()

        @torch.no_grad()
        def call(unet: Any = unet, x: Any = x, t: Any = t) -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=GPU):
                unet(x, t)

        # Two thirds more for the optimiser, the average, the data and the checkpoints.
        fit[width] = 1.67 * seconds(step, FIT_BATCH)
        sample[width] = 1.1 * seconds(call, FIT_BATCH)
    encoder = ProjectedEncoder(TrainConfig(batch=BATCH, queue=QUEUE, **SMALL)).to(device)
    views = [torch.randn(BATCH, 3, 32, 32, device=device)] * 3

    def train() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=GPU):
            torch.cat(list(encoder(views))).square().mean().backward()

    @torch.no_grad()
    def features() -> None:
        encoder.backbone(views[0])

    return Speeds(fit, sample, 1.5 * seconds(train, BATCH), 3 * seconds(features, BATCH))


def flags(**values: Any) -> list[str]:
    """Return option values as a command line's words."""
    words = []
    for name, value in values.items():
        flag = name.rstrip("_").replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else value
            words.append(f"--{flag}={text}")
    return words


def run(out: Path, stage: str, words: list[str]) -> float:
    """Run one stage unless it is done; return the seconds it took, over all its starts."""
    done = out / "done" / f"{stage}.json"
    if done.exists():
        return float(json.loads(done.read_text())["seconds"])
    command = [sys.executable, "-m", *words]
    click.echo(f"{stage}: {' '.join(command)}", err=True)
    began = time.monotonic()
    environment = os.environ | {"ACCELERATE_MIXED_PRECISION": "bf16" if GPU else "no"}
    (out / "logs").mkdir(parents=True, exist_ok=True)
    with open(out / "logs" / f"{stage}.log", "a") as log:
        result = subprocess.run(command, env=environment, stdout=log, stderr=log)
    if result.returncode:
        tail = (out / "logs" / f"{stage}.log").read_text()[-2000:]
        raise click.ClickException(f"{stage} ended with exit code {result.returncode}:\n{tail}")
    took = time.monotonic() - began
    done.parent.mkdir(exist_ok=True)
    write_atomic(done, json.dumps({"seconds": took, "command": command}).encode())
    return took


def arm_flags(arm: str, epochs: int) -> list[str]:
    """Return the options of an arm of equal epochs and batch: its recipe, and what differs."""
    recipe = arm.removesuffix("-warmup")
    warmup = {"lr_warmup": max(1, min(10, epochs // 10))}
    if arm != recipe:
        warmup["lambda_warmup"] = max(1, epochs // 5)
    queue = {"queue": QUEUE} if "moco" in recipe else {}
    every = {"log_every": 10, "save_every": 500}
    return flags(recipe=recipe, epochs=epochs, batch=BATCH, **warmup, **queue, **every, **SMALL)


def train_arm(arm: str, seed: int, budget: Budget, address: str, images: Path, out: Path) -> float:
    """Pretrain and probe one encoder; return the seconds that took."""
    place = out / "runs" / f"{arm}-{seed}"
    words = [*arm_flags(arm, budget.epochs), *flags(set=address, out=place, seed=seed)]
    seconds = run(out, f"train-{arm}-{seed}", ["clsp.train", *words, f"--cache={out / 'cache'}"])
    sources = {part: f"folder:{images / part}" for part in ("train", "test")}
    words = flags(encoder=place / "encoder", out=place / "evaluation", cache=out / "cache")
    stage = f"evaluate-{arm}-{seed}"
    return seconds + run(out, stage, ["clsp.evaluate", *words, *flags(**sources)])


def read_result(place: Path) -> Result:
    """Return what `clsp evaluate` measured of a run."""
    values = json.loads((place / "evaluation" / "results.json").read_text())
    return Result(values["scores"], np.array(values["confusion"]), read_curves(place))


def plan(out: Path, minutes: float, images: ImageSource, probed: int, **stages: Any) -> Budget:
    """Return the kept plan, or make one from the machine's speed."""
    path = out / "plan.json"
    if path.exists():
        return Budget(**json.loads(path.read_text())["budget"])
    speeds = measure_speeds()
    batch = FIT_BATCH
    try:
        budget = plan_budget(
            60 * minutes, speeds, anchors=len(images), probed=probed, batch=batch, **stages
        )
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--minutes") from error
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps({"budget": asdict(budget), "speeds": asdict(speeds)}).encode())
    return budget


@click.command()
@click.option("--images", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--minutes", required=True, type=click.FloatRange(min=0, min_open=True))
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.option("--seeds", default=2, show_default=True, type=click.IntRange(min=1))
@click.option("--model", help="A finished diffusion model, instead of fitting one.")
@click.option("--set", "address", help="A finished shard set of the images, instead of making one.")
def main(
    images: Path, minutes: float, out: Path, seeds: int, model: str | None, address: str | None
) -> None:
    """Compare SimCLR, a third real view, and CLSP-SimCLR on CIFAR-10 in so many minutes."""
    began = time.monotonic()
    try:
        source, test = (open_images(f"folder:{images / part}") for part in ("train", "test"))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--images") from error
    stages = {"seeds": seeds, "fit": not (model or address), "generate": not address}
    budget = plan(out, minutes, source, len(source) + len(test), **stages)
    click.echo(f"plan: {json.dumps(asdict(budget))}", err=True)
    seconds: dict[str, float] = {}
    if stages["fit"]:
        shape = unet_flags(budget.width)
        more = {"steps": budget.fit_steps, "batch": FIT_BATCH, "save_every": 1000}
        more |= {"warmup": max(1, budget.fit_steps // 40), "sample_every": 5000, "sample_steps": 20}
        words = flags(
            recipe="fit-cifar-short", images=f"folder:{images / 'train'}", out=out / "model"
        )
        fast = ["--compile"] if GPU else []
        seconds["fit"] = run(
            out, "fit", ["clsp.generate.fit", *words, *flags(**shape, **more), *fast]
        )
    if stages["generate"]:
        words = flags(
            recipe="fast",
            images=f"folder:{images / 'train'}",
            model=model or out / "model",
            out=out / "set",
            positives=budget.positives,
            steps=budget.sample_steps,
            dtype="bfloat16" if GPU else "float32",
        )
        seconds["generate"] = run(out, "generate", ["clsp.generate", *words])
    address = address or str(out / "set")
    arms: dict[str, list[int]] = {}
    for seed in range(seeds):
        for arm in FIRST:
            took = train_arm(arm, seed, budget, address, images, out)
            seconds[f"{arm}-{seed}"] = took
            arms.setdefault(arm, []).append(seed)
    for arm in THEN:
        kept = (out / "done" / f"train-{arm}-0.json").exists()
        spent = time.monotonic() - began
        if not kept and spent + 1.2 * budget.seconds["arm"] > 60 * minutes:
            click.echo(f"{arm}: no time left for it", err=True)
            continue
        seconds[f"{arm}-0"] = train_arm(arm, 0, budget, address, images, out)
        arms[arm] = [0]
    summarise(out, budget, seconds, arms, address)


def summarise(
    out: Path,
    budget: Budget,
    seconds: dict[str, float],
    arms: dict[str, list[int]],
    address: str,
) -> None:
    """Write OUT/cifar10.json and OUT/report.html."""
    results = {
        arm: [read_result(out / "runs" / f"{arm}-{seed}") for seed in seeds]
        for arm, seeds in arms.items()
    }
    shards = open_set(address)
    # One feature space for both: the plain encoder, which has never seen a positive.
    encoder = load_encoder(out / "runs" / "simclr-0" / "encoder")
    features = set_features(shards, encoder, device="cuda" if GPU else "cpu")
    distance = frechet_distance(features.anchors, features.positives[:, 0])
    plain, clsp = ([r.scores["linear_top1"] for r in results[a]] for a in ("simclr", "clsp-simclr"))
    gains = [b - a for a, b in zip(plain, clsp, strict=True)]
    tables = {
        arm: {name: [r.scores[name] for r in found] for name in PROBED}
        for arm, found in results.items()
    }
    values = {
        "budget": asdict(budget),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "epochs": budget.epochs,
        "scores": tables,
        "clsp_gain": {"each_seed": gains, "mean": float(np.mean(gains))},
        "frechet": {
            "space": "features of simclr-0, anchors against their first positives",
            "value": distance.value,
            "interval": [distance.low, distance.high],
            "sampling_seconds": round(seconds.get("generate", 0.0), 1),
        },
        "paper_linear_top1_at_100_and_1000_epochs": PAPER,
    }
    path = report("cifar10", values, out)
    reported = Report(
        title="CIFAR-10: do synthetic positives help?",
        lead=f"{len(shards):,} anchors with {shards.positives} positives each; every arm "
        f"{budget.epochs} epochs. CLSP-SimCLR minus SimCLR, linear: {np.mean(gains):+.1f} points.",
        arms=[Arm(name, tuple(found), tuple(arms[name])) for name, found in results.items()],
        classes=list(shards.manifest.classes or ()),
        about={name: str(value) for name, value in json.loads(path.read_text()).items()},
        sheets={"Anchors and their positives": preview_png(shards)},
        notes=(
            f"Frechet distance of positives and anchors {distance.value:.2f} "
            f"({distance.low:.2f} to {distance.high:.2f}) in the features of the plain encoder.",
        ),
    )
    write_report(out / "report.html", reported)


if __name__ == "__main__":
    main()
