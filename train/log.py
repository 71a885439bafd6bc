"""Numbers that say how training goes, and a warning when the encoder has collapsed."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker
from torch import Tensor
from tqdm import tqdm

from ..recipes import announce, progress
from ..shards.files import write_atomic
from .config import TrainConfig, learning_rate, positive_weight
from .options import RunOptions
from .stream import Stream

_LEAST_SPREAD = 0.1
_PATIENCE = 3  # log entries in a row


def embedding_std(z: Tensor) -> float:
    """Return how spread embeddings are: 1 when uniform on the sphere, 0 when all are the same.

    z: (B, D) of unit length. The mean over dimensions of the deviation over the batch, times
    sqrt(D). Chen & He, 2021, arXiv:2011.10566.
    """
    return float(z.detach().std(dim=0, unbiased=False).mean() * z.shape[1] ** 0.5)


class CollapseMonitor:
    """Notices when every image gets about the same embedding, several log entries in a row.

    first_step: entries before it do not count, because a fresh encoder is not spread yet.
    """

    def __init__(self, chance: float | None, first_step: int) -> None:
        self.chance, self.first_step = chance, first_step
        self._in_a_row = 0

    def warning(self, step: int, std: float, contrastive: float) -> str | None:
        """Return a warning to print, once for each collapse, else None."""
        if step < self.first_step or std >= _LEAST_SPREAD:
            self._in_a_row = 0
            return None
        self._in_a_row += 1
        if self._in_a_row != _PATIENCE:
            return None
        chance = "" if self.chance is None else f" (chance is {self.chance:.3f})"
        return (
            f"step {step}: the encoder has collapsed: embedding std {std:.3f} (1 is spread, 0 one "
            f"point for all images), contrastive loss {contrastive:.3f}{chance}. A positive term "
            "that is strong from the start does this; try --lambda-warmup, a smaller --lambda or a "
            "smaller --lr."
        )


class MetricsFile:
    """A file of one JSON object a line; a resumed run goes on behind the step it resumed at."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        write_atomic(path, "".join(kept).encode())

    def append(self, row: dict[str, Any]) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())


class TrainingLog:
    """The progress bar, trackers, metrics.jsonl and the collapse monitor; one for all ranks."""

    def __init__(
        self,
        accelerator: Accelerator,
        config: TrainConfig,
        options: RunOptions,
        out: Path,
        *,
        start: int,
        stream: Stream,
        chance: float | None,
    ) -> None:
        """start: steps done before; chance: a collapsed encoder's loss."""
        self.accelerator, self.config = accelerator, config
        self.main = accelerator.is_main_process
        self.bar = progress(stream.total, "train", "step", initial=start, show=self.main)
        self._last = (start, time.monotonic())
        if not self.main:
            return
        announce(config, out / "config.json")
        self.monitor = CollapseMonitor(chance, first_step=stream.per_epoch)
        self.metrics = MetricsFile(out / "metrics.jsonl", start)
        self.accuracies = MetricsFile(out / "knn.jsonl", start) if options.knn else None
        settings = {
            name: value if isinstance(value, (int, float, str)) else str(value)
            for name, value in vars(config).items()
        }
        accelerator.log_with = [
            # TensorBoard then hides what a killed run had logged beyond its checkpoint.
            TensorBoardTracker(name, out, purge_step=start) if name == "tensorboard" else name
            for name in options.trackers
        ]
        accelerator.init_trackers("clsp", config=settings)

    def step(self, done: int, epoch: float, z: Tensor, terms: dict[str, Tensor]) -> None:
        """Follow a step; `done` counts them from 1, `epoch` is the moment it was made at.

        z: the first view's embeddings, (B, D); terms: of the loss, and the "loss".
        """
        self.bar.update()
        if not self.main or done % self.config.log_every:
            return
        now = time.monotonic()
        speed = (done - self._last[0]) * self.config.batch / (now - self._last[1])
        self._last = (done, now)
        row = {name: float(value.detach()) for name, value in terms.items()}
        row |= {
            "lambda": positive_weight(self.config, epoch),
            "lr": learning_rate(self.config, epoch),
            "embedding_std": embedding_std(z),
            "tuples_per_second": speed,
        }
        self.bar.set_postfix(loss=f"{row['loss']:.3f}", std=f"{row['embedding_std']:.2f}")
        self.accelerator.log(row, step=done)
        self.metrics.append({"step": done, "epoch": epoch, **row})
        warning = self.monitor.warning(done, row["embedding_std"], row["contrastive"])
        if warning:
            tqdm.write(f"warning: {warning}", file=sys.stderr)

    def knn(self, done: int, epoch: int, accuracy: float) -> None:
        """Follow an online kNN after `done` steps and `epoch` epochs; on the main rank."""
        assert self.accuracies is not None
        self.accuracies.append({"step": done, "epoch": epoch, "online_knn": accuracy})
        self.accelerator.log({"online_knn": accuracy}, step=done)

    def close(self) -> None:
        """End the bar and write out the trackers' files."""
        self.bar.close()
        self.accelerator.end_training()
