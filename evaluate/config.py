"""What decides an evaluation's numbers, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

ENCODER_KINDS = """\
  FOLDER                       an export of `clsp train`: OUT/encoder
  FILE                         a checkpoint of a torchvision-style ResNet (.pt .pth .ckpt .bin
                               .safetensors): solo-learn, lightly, MoCo, the reference, ...
  torchvision:NAME[:WEIGHTS]   WEIGHTS: DEFAULT, another of its names, none, or a FILE
  timm:NAME[:WEIGHTS]          WEIGHTS: DEFAULT, none, or a FILE
Each may end in settings: ",image_size=96,stem=stl,mean=0.5:0.5:0.5,std=0.5:0.5:0.5"."""
KS = (1, 5, 10, 20, 50, 100, 200)
TEMPERATURES = (0.02, 0.04, 0.07, 0.1, 0.2, 0.5)


def _help(text: str, default: Any) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class EvaluateConfig:
    """How an encoder is probed. The linear probe's defaults are the reference's."""

    lr: float = _help("Linear probe: SGD's learning rate.", 1.0)
    epochs: int = _help("Linear probe: passes over the training features.", 100)
    batch: int = _help("Linear probe: images a step.", 256)
    flip: bool = _help("Use mirrored images as training images too.", True)
    lbfgs: bool = _help("Also the linear probe by L-BFGS with its penalty chosen.", True)
    ks: tuple[int, ...] = _help("kNN: numbers of neighbours to choose from.", KS)
    temperatures: tuple[float, ...] = _help("kNN: temperatures to choose from.", TEMPERATURES)
    shots: tuple[int, ...] = _help("Few-shot: labelled images a class.", (1, 5))
    episodes: int = _help("Few-shot: draws of labelled images that are averaged.", 100)
    seed: int = _help("Seed of the probes' draws.", 0)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("shots", "ks"):
            if min(getattr(self, name), default=0) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected numbers of at least 1")
        if min(self.temperatures, default=0) <= 0:
            raise ValueError(f"temperatures is {self.temperatures}, expected numbers above 0")
        if self.lr <= 0:
            raise ValueError(f"lr is {self.lr}, expected more than 0")
