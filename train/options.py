"""How a run is made and watched, as opposed to what encoder it gives."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import Any, Literal


def _help(text: str, default: Any) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class RunOptions:
    """Settings that may change from one rerun of a command to the next."""

    workers: int = _help(
        "Loader processes a rank; -1: none for a cached set, else its share of cores, at most 8.",
        -1,
    )
    follow: bool = _help("Train while the set is still being generated.", False)
    precision: Literal["launch", "no", "bf16", "fp16"] = _help(
        "Mixed precision; launch: what `accelerate launch` was told.", "launch"
    )
    layout: Literal["auto", "channels_last", "contiguous"] = _help(
        "Memory layout of images; auto: channels_last on a GPU.", "auto"
    )
    compile: bool = _help("Compile the backbone with torch.compile.", False)
    trackers: tuple[str, ...] = _help(
        "Accelerate's trackers: tensorboard, wandb, trackio ...", ("tensorboard",)
    )
    knn: str = _help("Labelled image source of an online kNN; empty: none.", "")
    knn_every: int = _help("Epochs between online kNNs.", 10)

    def __post_init__(self) -> None:
        if self.workers < -1:
            raise ValueError(f"workers is {self.workers}, expected at least -1")
        if self.knn_every < 1:
            raise ValueError(f"knn_every is {self.knn_every}, expected at least 1")
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS  # here, so that --help is quick

        for name in self.trackers:
            if name not in LOGGER_TYPE_TO_CLASS:
                raise ValueError(
                    f"tracker {name!r} is none of Accelerate's: {', '.join(LOGGER_TYPE_TO_CLASS)}"
                )
            # Accelerate itself passes over a tracker that is not installed.
            if importlib.util.find_spec(name) is None:
                raise ValueError(f"tracker {name!r} is not installed: pip install {name}")
