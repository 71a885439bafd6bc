"""What decides an evaluation's numbers, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def _help(text: str, default: Any) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class EvaluateConfig:
    """How an encoder is probed. The linear probe's defaults are the reference's."""

    lr: float = _help("Linear probe: SGD's learning rate.", 1.0)
    epochs: int = _help("Linear probe: passes over the training features.", 100)
    batch: int = _help("Linear probe: images a step.", 256)
    flip: bool = _help("Use mirrored images as training images too.", True)
    shots: tuple[int, ...] = _help("Few-shot: labelled images a class.", (1, 5))
    episodes: int = _help("Few-shot: draws of labelled images that are averaged.", 100)
    seed: int = _help("Seed of the probes' draws.", 0)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if not self.shots or min(self.shots) < 1:
            raise ValueError(f"shots is {self.shots}, expected numbers of at least 1")
        if self.lr <= 0:
            raise ValueError(f"lr is {self.lr}, expected more than 0")
