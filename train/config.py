"""What decides an encoder, and nothing else. The defaults are the reference's for CIFAR-10."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from .hardness import parse_range

LABELLED = ("supcon",)  # methods that need the labels of the images
QUEUED = ("moco", "ft-moco", "nnclr", "all4one")  # methods that keep projections of earlier batches
LOCAL_MIN = 0.05  # least area of a local crop, as in SwAV and DINO

# Where an MLP has batch norm.
Norm: TypeAlias = Literal["none", "hidden", "all", "centred"]


def _help(text: str, default: Any) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TrainConfig:
    """How an encoder is pretrained. Zeng et al., 2024, arXiv:2408.16965."""

    method: Literal[
        "simclr",
        "moco",
        "mocov3",
        "byol",
        "nnclr",
        "all4one",
        "barlow",
        "vicreg",
        "vibcreg",
        "swav",
        "dino",
        "supcon",
        "stablerep",
        "mv-infonce",
        "mv-dhel",
        "cacr",
        "dcl",
        "dclw",
        "ft-simclr",
        "ft-moco",
    ] = _help("Objective.", "simclr")
    positive: Literal["none", "synthetic", "real"] = _help(
        "Third view: none, a synthetic positive, or a view of the anchor (the control).", "none"
    )
    positives: int = _help("How many of the set's K positives an anchor gets in a step.", 1)
    positive_as: Literal["term", "view", "neighbour", "target"] = _help(
        "Where positives enter: the paper's term, one more view, the neighbour, or a target.",
        "term",
    )
    hardness: str = _help(
        "Draw positives between these quantiles of the set's hardness only, such as 0.2:0.8.", "0:1"
    )
    hardness_curriculum: int = _help(
        "Epochs over which the upper end of --hardness rises: easy positives first.", 0
    )
    augment_positives: bool = _help(
        "Augment synthetic positives as anchors are; without it they are only normalised.", True
    )
    arch: str = _help("Backbone: resnet18, resnet50, conv-tiny or timm:NAME.", "resnet18")
    stem: Literal["cifar", "stl", "imagenet"] = _help(
        "First layers of a ResNet; imagenet keeps the network's own, as timm:NAME needs.", "cifar"
    )
    hidden: int = _help("Width of the projector's hidden layers.", 4096)
    dim: int = _help("Width of the projector's output.", 256)
    layers: int = _help("Linear layers of the projector.", 2)
    projector_bn: Literal["none", "hidden", "all", "centred"] = _help(
        "Batch norm in the projector: none, after hidden layers, after all, or after all with "
        "neither scale nor shift in the last (centred).",
        "none",
    )
    predictor_hidden: int = _help(
        "Width of the hidden layer of BYOL's, MoCo v3's, NNCLR's and All4One's predictor; 0: "
        "--hidden.",
        0,
    )
    predictor_bn: Literal["none", "hidden", "all", "centred"] = _help(
        "Batch norm in the predictor, likewise.", "hidden"
    )
    epochs: int = _help("Passes over the set.", 1000)
    batch: int = _help("Anchors a step, over all ranks.", 1024)
    accumulate: int = _help("Batches whose gradients are averaged for one optimiser step.", 1)
    chunk: int = _help(
        "Anchors a rank embeds at once, by gradient caching; 0: all. Exact without batch norm.", 0
    )
    optimizer: Literal["sgd", "lars", "adamw"] = _help("Optimiser; lars needs clsp[timm].", "sgd")
    lr: float = _help("Learning rate after the warm-up.", 0.5)
    lr_warmup: int = _help("Epochs from 1e-3 up to the learning rate.", 10)
    schedule: Literal["epoch", "step"] = _help("How often the learning rate changes.", "epoch")
    momentum: float = _help("SGD's and LARS's momentum.", 0.9)
    weight_decay: float = _help("Weight decay.", 1e-4)
    decay_all: bool = _help("Decay biases and the weights of norms too.", True)
    lars_trust: float = _help("LARS: trust coefficient.", 0.001)
    lars_clip: bool = _help("LARS: never raise a layer's rate above the learning rate.", False)
    temperature: float = _help("Temperature of the contrastive loss.", 0.2)
    lambda_: float = _help("Weight of the positive term.", 1.0)
    lambda_warmup: int = _help("Epochs over which lambda grows from 0.", 0)
    bn_mode: Literal["joint", "split", "sync"] = _help(
        "Batch-norm statistics: of all views of all ranks (sync), of a rank's (joint), or of each "
        "of its views by itself (split). On one rank sync is joint.",
        "sync",
    )
    queue: int = _help("MoCo: negatives in each of its two queues; NNCLR, All4One: support.", 32768)
    prototypes: int = _help("SwAV and DINO: prototypes.", 4096)
    ema: float = _help("First decay of a second, slow encoder; it rises to --ema-end.", 0.99)
    ema_end: float = _help("Last decay of a second, slow encoder.", 0.999)
    crop_min: float = _help("Least area of a random resized crop.", 0.08)
    local_crops: int = _help(
        "Multi-crop: further, small views of an anchor, of areas from 0.05 to --crop-min.", 0
    )
    local_size: int = _help("Pixels a side of local crops; 0: half of the image's.", 0)
    jitter: tuple[float, ...] = _help(
        "Brightness, contrast, saturation, hue.", (0.4, 0.4, 0.4, 0.1)
    )
    jitter_p: float = _help("Probability of colour jitter.", 0.8)
    grey_p: float = _help("Probability of a grey image.", 0.2)
    blur_p: float = _help("Probability of Gaussian blur, of sigma 0.1 to 2 pixels.", 0.0)
    solarize_p: float = _help("Probability of solarisation.", 0.0)
    solarize_views: Literal["all", "second"] = _help(
        "Views that may be solarised: all, or the second view of the anchor only.", "all"
    )
    flip_p: float = _help("Probability of a mirrored image.", 0.5)
    mean: tuple[float, ...] = _help("Normalisation: means of R, G, B.", (0.4914, 0.4822, 0.4465))
    std: tuple[float, ...] = _help("Normalisation: deviations.", (0.2023, 0.1994, 0.2010))
    seed: int = _help("Seed of weights, order and views.", 0)
    save_every: int = _help("Steps between checkpoints.", 500)
    log_every: int = _help("Steps between log entries.", 50)

    def __post_init__(self) -> None:
        for name in (
            "epochs",
            "batch",
            "accumulate",
            "hidden",
            "dim",
            "layers",
            "queue",
            "positives",
            "prototypes",
            "save_every",
            "log_every",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.batch < 2:
            raise ValueError("batch is 1, but a contrastive loss needs at least 2 anchors")
        for name in ("chunk", "predictor_hidden", "local_crops", "local_size", "lambda_warmup"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 0")
        if self.local_crops and self.crop_min <= LOCAL_MIN:
            raise ValueError(
                f"local crops have areas from {LOCAL_MIN} to crop_min, and that is {self.crop_min}"
            )
        if self.save_every % self.accumulate:
            raise ValueError(
                f"save_every {self.save_every} is not a multiple of accumulate {self.accumulate}"
            )
        if self.lambda_ < 0:
            raise ValueError(f"lambda is {self.lambda_}, expected at least 0")
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}, expected more than 0")
        for name in ("jitter_p", "grey_p", "blur_p", "solarize_p", "flip_p", "ema", "ema_end"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a value in [0, 1]")
        if not 0 < self.crop_min <= 1:
            raise ValueError(f"crop_min is {self.crop_min}, expected a share in (0, 1]")
        for name, length in (("jitter", 4), ("mean", 3), ("std", 3)):
            if len(getattr(self, name)) != length:
                raise ValueError(f"{name} has {len(getattr(self, name))} values, expected {length}")
        if self.hardness_curriculum < 0:
            raise ValueError(
                f"hardness_curriculum is {self.hardness_curriculum}, expected 0 or more"
            )
        chosen = parse_range(self.hardness) != (0, 1) or self.hardness_curriculum > 0
        if chosen and self.positive != "synthetic":
            raise ValueError(
                f"hardness chooses among synthetic positives, but positive is {self.positive}"
            )
        if not self.augment_positives and self.positive != "synthetic":
            raise ValueError(
                f"augment_positives is about synthetic positives, but positive is {self.positive}"
            )
        if self.method == "all4one" and self.queue < 5:
            raise ValueError(f"queue is {self.queue}, but all4one takes 5 neighbours from it")
        if self.method in QUEUED and self.queue % self.batch:
            raise ValueError(f"queue {self.queue} is not a multiple of batch {self.batch}")


def learning_rate(config: TrainConfig, epoch: float) -> float:
    """Return the rate at a moment in epochs: linear from 1e-3 to `lr`, then half a cosine to 0.

    The base rate is reached at epoch `lr_warmup` - 1; 0 would be at epoch `epochs`. By the schedule
    "epoch" a whole epoch has the rate of its first moment.
    """
    epoch = int(epoch) if config.schedule == "epoch" else epoch
    last = config.lr_warmup - 1
    if epoch < last:
        return 1e-3 + (config.lr - 1e-3) * epoch / last
    done = (epoch - max(last, 0)) / max(1, config.epochs - max(last, 0))
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))


def positive_weight(config: TrainConfig, epoch: float) -> float:
    """Return lambda at a moment of training, given in epochs (fractions allowed)."""
    return config.lambda_ * min(1.0, epoch / config.lambda_warmup if config.lambda_warmup else 1.0)
