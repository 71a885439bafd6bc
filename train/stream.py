"""All batches of a run, from a finished set or from one that is still growing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import get_cpu_distributed_information

from ..shards.order import check_batch, steps_per_epoch
from ..shards.reader import ShardSet
from ..shards.scores import load_hardness
from ..shards.store import open_set
from .config import LABELLED, TrainConfig
from .follow import FollowedSet
from .hardness import HardnessRange, parse_range
from .options import RunOptions
from .tuples import TupleBatches, Tuples, decoded_set, load_tuples


class Stream:
    """This rank's part of every batch of a run.

    sources: what it reads, by name, each by its sha256: the set (the plan while it grows), and the
    positives' hardness where that chooses; image_size: pixels a side; per_epoch,
    total: steps of an epoch and of the run, for a set that grows as if it were whole already.
    """

    def __init__(
        self,
        config: TrainConfig,
        address: str | Path,
        out: Path,
        cache: Path,
        cache_limit: int,
        options: RunOptions,
        accelerator: Accelerator,
    ) -> None:
        """Raises ValueError for a set, or a batch, that does not fit."""
        self.config, self.options, self.accelerator = config, options, accelerator
        self.hardness = None
        if options.follow:
            if config.hardness != "0:1" or config.hardness_curriculum:
                raise ValueError("hardness is known of a finished set only; leave out --follow")
            self.followed = FollowedSet(Path(address), out / "epochs.jsonl", accelerator)
            samples, self.sources = self.followed.samples, {"set": self.followed.id}
            self.image_size, self.pixels = self.followed.image_size, None
        else:
            self.shards = open_set(address, cache=cache, cache_limit=cache_limit)
            samples, self.sources = len(self.shards), {"set": self.shards.id}
            self.image_size = self.shards.manifest.image_size
        check_batch(samples, config.batch, accelerator.num_processes)
        if not options.follow:
            with accelerator.local_main_process_first():
                self.pixels = decoded_set(self.shards, cache)
            if parse_range(config.hardness) != (0, 1) or config.hardness_curriculum:
                self.hardness = self._hardness()
            self._tuples(self.shards, 0, 0)  # an error now, and not behind a config.json
        self.per_epoch = steps_per_epoch(samples, config.batch)
        self.total = config.epochs * self.per_epoch

    def batches(self, start: int) -> Iterator[Tuples]:
        """Yield the batches of this rank from global step `start` to the end."""
        for part, stop in self._parts():
            if stop > start:
                yield from load_tuples(
                    part,
                    max(start, part.first_step),
                    stop,
                    workers=self._workers(),
                    pin_memory=self.accelerator.device.type == "cuda",
                )

    def _parts(self) -> Iterator[tuple[TupleBatches, int]]:
        """The stretches in which the set stays the same: (their batches, the step after)."""
        if not self.options.follow:
            yield self._tuples(self.shards, 0, 0), self.total
            return
        step = 0
        for epoch in range(self.config.epochs):
            part = self._tuples(self.followed.at(epoch, self.config.batch), step, epoch)
            step += part.per_epoch
            yield part, step

    def _tuples(self, shards: ShardSet, first_step: int, first_epoch: int) -> TupleBatches:
        return TupleBatches(
            shards,
            self.config.batch,
            self.config.seed,
            positives=self.config.positives if self.config.positive == "synthetic" else 0,
            labels=self.config.method in LABELLED,
            pixels=self.pixels,
            hardness=self.hardness,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            first_step=first_step,
            first_epoch=first_epoch,
        )

    def _hardness(self) -> HardnessRange:
        values, _ = load_hardness(self.shards)
        # Measured again, it would be another run.
        self.sources["hardness"] = hashlib.sha256(values.tobytes()).hexdigest()
        return HardnessRange(
            values, *parse_range(self.config.hardness), self.config.hardness_curriculum
        )

    def _workers(self) -> int:
        if self.options.workers >= 0:
            return self.options.workers
        if self.pixels is not None:
            return 0
        # The launcher's word for the ranks of this machine, which share its cores.
        ranks: int = get_cpu_distributed_information().local_world_size
        return max(1, min(8, len(os.sched_getaffinity(0)) // ranks))
