"""Batches of (anchor, positives, key) from a shard set, in the order that `shards.order` gives."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..recipes import progress
from ..shards.check import ShardError
from ..shards.files import temporary_name
from ..shards.order import (
    I64,
    U64,
    EpochOrder,
    batch_indices,
    hash_key,
    shard_order,
    steps_per_epoch,
    uniforms,
)
from ..shards.reader import ShardSet
from .hardness import HardnessRange, draw_slots

MOST_CACHED = 64 * 2**30  # bytes of decoded pixels


class Tuples(NamedTuple):
    """One rank's part of a global batch, on the CPU.

    anchor: (b, 3, S, S) uint8; positives: (b, M, 3, S, S) uint8, M 0 when none is asked for; keys:
    (b,) uint64 hashes of the records' keys; step: the global batch's number since the start;
    epoch: the moment in epochs, whose whole part is the epoch's number; ends_epoch: whether it is
    the last; labels: (b,) int64, None when they are not asked for.
    """

    anchor: Tensor
    positives: Tensor
    keys: U64
    step: int
    epoch: float
    ends_epoch: bool
    labels: Tensor | None = None


class TupleBatches(Dataset[Tuples]):
    """Item `step` is this rank's slice of global batch `step`, counted over all epochs.

    A pure function of (set, seed, batch, step, rank, world): neither workers nor resuming change
    it. M different ones of the K positives are drawn for each anchor in each epoch, among those of
    a range of hardness when one is given.
    """

    def __init__(
        self,
        shards: ShardSet,
        batch: int,
        seed: int,
        *,
        positives: int,
        labels: bool = False,
        pixels: np.ndarray | None = None,
        hardness: HardnessRange | None = None,
        rank: int = 0,
        world: int = 1,
        first_step: int = 0,
        first_epoch: int = 0,
    ) -> None:
        """positives: M; labels: whether a batch brings its records' labels; pixels: the set
        decoded, as `decoded_set` gives it; without it images are decoded here.

        first_step, first_epoch: how much was trained on an earlier, smaller state of the set.
        Raises ShardError for a set without anchors, of fewer than M positives, or without labels
        where they are wanted.
        """
        if not shards.manifest.anchors:
            raise ShardError(
                f"{shards.address} carries no anchors, which training needs: "
                "`clsp shards join` pairs it with yours"
            )
        if positives > shards.positives:
            raise ShardError(
                f"{shards.address} has {shards.positives} positives an anchor, {positives} are "
                "asked for"
            )
        self.shards, self.batch, self.seed, self.positives = shards, batch, seed, positives
        self.labels = labels
        self.pixels, self.hardness, self.rank, self.world = pixels, hardness, rank, world
        self.first_step, self.first_epoch = first_step, first_epoch
        self.per_epoch = steps_per_epoch(len(shards), batch)
        self._epoch = -1
        if labels:
            self._label(0)  # an error now, not at the first step

    def __getitem__(self, step: int) -> Tuples:
        epoch, position = divmod(step - self.first_step, self.per_epoch)
        epoch += self.first_epoch
        if epoch != self._epoch:
            self._order = EpochOrder(self.seed, epoch, self.shards.shard_sizes)
            self._epoch = epoch
            shards = shard_order(self.seed, epoch, len(self.shards.shard_sizes))
            self.shards.prefetch(shards.tolist())
        rows = batch_indices(self._order, position, self.batch, self.rank, self.world)
        # Asked for row by row: all keys of a huge set would not fit, and each shard that is read
        # from afar would have to be there.
        keys = np.array([hash_key(self.shards.key(row)) for row in rows.tolist()], np.uint64)
        draws = uniforms(self.seed, epoch, keys, "positive", self.positives)
        if self.hardness is None:
            slots = draw_slots(np.zeros((len(rows), self.shards.positives)), draws)
        else:
            slots = self.hardness.choose(rows, draws, epoch)
        images = torch.from_numpy(self._read(rows, slots)).permute(0, 1, 4, 2, 3)
        labels = torch.tensor([self._label(row) for row in rows.tolist()]) if self.labels else None
        moment, ends = epoch + position / self.per_epoch, position + 1 == self.per_epoch
        return Tuples(images[:, 0], images[:, 1:], keys, step, moment, ends, labels)

    def _read(self, rows: I64, slots: I64) -> np.ndarray:
        """Return (b, 1 + M, S, S, 3): the anchors, and positives number `slots` (b, M)."""
        if self.pixels is not None:
            members = np.concatenate([np.zeros((len(rows), 1), np.int64), 1 + slots], axis=1)
            return np.asarray(self.pixels[rows[:, None], members])
        names = (["anchor", *(f"p{slot}" for slot in some)] for some in slots.tolist())
        return np.stack(
            [self.shards.pixels(i, n) for i, n in zip(rows.tolist(), names, strict=True)]
        )

    def _label(self, row: int) -> int:
        label = json.loads(self.shards.read(row, ["json"])["json"]).get("label")
        if not isinstance(label, int):
            raise ShardError(
                f"{self.shards.address}: record {self.shards.key(row)} has label {label!r}, "
                "expected an integer; the method needs a set made of labelled images"
            )
        return label


class _Outcomes(Dataset[Tuples | Exception]):
    """A data set's items, or the errors in their place: torch puts a trace into the message."""

    def __init__(self, batches: TupleBatches) -> None:
        self.batches = batches

    def __getitem__(self, step: int) -> Tuples | Exception:
        try:
            return self.batches[step]
        except (ShardError, OSError) as error:
            return error


def load_tuples(
    batches: TupleBatches, start: int, stop: int, *, workers: int = 0, pin_memory: bool = False
) -> Iterator[Tuples]:
    """Yield global batches start..stop, this rank's slices of them, read by so many processes.

    Raises what a batch raised, whichever process read it.
    """
    loader = DataLoader(
        _Outcomes(batches),
        batch_size=None,
        sampler=range(start, stop),
        collate_fn=_as_it_is,
        num_workers=workers,
        pin_memory=pin_memory,
    )
    for item in loader:
        if isinstance(item, Exception):
            raise item
        yield item


def _as_it_is(item: Any) -> Any:
    return item


def decoded_set(shards: ShardSet, cache: Path) -> np.ndarray | None:
    """Return a set's pixels, (N, 1 + K, S, S, 3) uint8, memory-mapped; the anchor comes first.

    They are decoded once, every image compared with its hash, into a file of `cache` that is
    named after the set. None for a set of more than 64 GiB of pixels, and for one read from afar
    that was not decoded before: training on it starts when its first shard is there.
    Raises ShardError for a damaged set and OSError when the disk is full; then no file is left.
    """
    side, members = shards.manifest.image_size, 1 + shards.positives
    shape = (len(shards), members, side, side, 3)
    if np.prod(shape, dtype=np.int64) > MOST_CACHED or not shards.manifest.anchors:
        return None
    path = cache / f"{shards.id}.npy"
    if not path.exists():
        if shards.is_remote:
            return None
        cache.mkdir(parents=True, exist_ok=True)
        _decode(shards, path, shape)
    pixels: np.ndarray = np.load(path, mmap_mode="r")
    if pixels.shape != shape or pixels.dtype != np.uint8:
        raise ValueError(f"{path} holds {pixels.dtype} {pixels.shape}, expected uint8 {shape}")
    return pixels


def _decode(shards: ShardSet, path: Path, shape: tuple[int, ...]) -> None:
    names = ["anchor", *(f"p{number}" for number in range(shards.positives))]
    temporary = temporary_name(path)
    try:
        # Written, not mapped: a full disk is then an error and not a bus error.
        with open(temporary, "wb") as file, progress(len(shards), "decode", "record") as bar:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            npy.write_array_header_1_0(file, header)
            for index in range(len(shards)):
                file.write(shards.pixels(index, names).tobytes())
                bar.update()
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
