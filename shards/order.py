"""Which sample comes when, for any number of ranks and workers: integers only.

Everything here is a pure function of its arguments, computed by hashing rather than by a random
generator's state. So an epoch can be entered at any step, by any number of ranks, and a sample's
draws do not depend on what else is in its batch.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np

U64 = np.ndarray[Any, np.dtype[np.uint64]]
I64 = np.ndarray[Any, np.dtype[np.int64]]
F64 = np.ndarray[Any, np.dtype[np.float64]]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix64(x: U64) -> U64:
    """Return a bijective hash of each 64-bit integer: splitmix64's output function.

    Steele et al., 2014, "Fast splittable pseudorandom number generators".
    """
    z = x + _GOLDEN  # array arithmetic wraps around
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


def hash_key(key: str) -> int:
    """Return a 64-bit hash of a text, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def _salt(*parts: int | str) -> U64:
    return np.array([hash_key("/".join(map(str, parts)))], np.uint64)


def uniforms(seed: int, epoch: int, key_hashes: U64, stream: str, n: int) -> F64:
    """Return (B, n) numbers in [0, 1), row i a function of (seed, epoch, key i, stream) alone.

    key_hashes: (B,) uint64 from `hash_key`; stream names what the numbers are for.
    """
    rows = mix64(key_hashes ^ _salt(seed, epoch, stream))
    counters = mix64(np.arange(n, dtype=np.uint64))
    bits = mix64(rows[:, None] ^ counters[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _permutation(n: int, salt: U64) -> I64:
    # The stable sort settles the (never yet seen) case of two equal hashes.
    return np.argsort(mix64(np.arange(n, dtype=np.uint64) ^ salt), kind="stable")


def shard_order(seed: int, epoch: int, shards: int) -> I64:
    """Return in which order an epoch takes the shards: a permutation of 0..S-1, (S,) int64."""
    return _permutation(shards, _salt(seed, epoch, "shards"))


class EpochOrder:
    """The order of an epoch, a permutation of 0..N-1; a slice of it is (n,) int64.

    Whole shards are permuted and grouped into blocks of at least `block` samples, and samples
    shuffled inside each block. So a set of up to `block` samples is shuffled as a whole, and a
    larger one can be streamed shard by shard. Blocks of epoch 0 grow from one shard, each as large
    as all before it, so that the first batch of a set read from afar waits for one shard only.
    Only the block that was asked for last is in memory.
    """

    def __init__(
        self, seed: int, epoch: int, shard_sizes: Sequence[int], block: int = 1 << 18
    ) -> None:
        self.salt = _salt(seed, epoch, "samples")
        self.sizes = np.asarray(shard_sizes, np.int64)
        self.shards = shard_order(seed, epoch, len(self.sizes))
        self.ends: list[int] = []  # of the blocks: places in `shards` and in the order
        self.stops: list[int] = []
        count = done = 0
        for position, size in enumerate(self.sizes[self.shards].tolist(), start=1):
            count += size
            last = position == len(self.shards)
            if count >= (block if epoch else min(block, done)) or last:
                done, count = done + count, 0
                self.ends.append(position)
                self.stops.append(done)
        self._kept = -1, np.empty(0, np.int64)

    def __len__(self) -> int:
        return self.stops[-1]

    def __getitem__(self, part: slice) -> I64:
        start, stop, _ = part.indices(len(self))
        found = [np.empty(0, np.int64)]
        while start < stop:
            number = bisect_right(self.stops, start)
            first = self.stops[number - 1] if number else 0
            found.append(self._block(number)[start - first : stop - first])
            start = self.stops[number]
        return np.concatenate(found)

    def _block(self, number: int) -> I64:
        if self._kept[0] != number:
            shards = self.shards[self.ends[number - 1] if number else 0 : self.ends[number]]
            starts = np.cumsum(self.sizes) - self.sizes
            samples = np.concatenate(
                [np.arange(starts[shard], starts[shard] + self.sizes[shard]) for shard in shards]
            )
            # Hashing the sample's own number: the shuffle does not depend on the block's number.
            hashes = mix64(samples.astype(np.uint64) ^ self.salt)
            self._kept = number, samples[np.argsort(hashes, kind="stable")]
        return self._kept[1]


def epoch_order(seed: int, epoch: int, shard_sizes: Sequence[int], block: int = 1 << 18) -> I64:
    """Return the whole order of an epoch, (N,) int64; see `EpochOrder`."""
    return EpochOrder(seed, epoch, shard_sizes, block)[:]


def check_batch(samples: int, batch: int, world: int) -> None:
    """Raise ValueError unless `world` ranks can share global batches of `batch` of `samples`."""
    if batch < 1:
        raise ValueError(f"batch is {batch}, expected at least 1")
    if batch > samples:
        raise ValueError(f"batch {batch} is larger than the set of {samples} samples")
    if batch % world:
        raise ValueError(f"batch {batch} cannot be divided among {world} ranks")


def steps_per_epoch(samples: int, batch: int) -> int:
    """Return how many global batches an epoch has; the last partial one is dropped."""
    return samples // batch


def batch_indices(order: I64 | EpochOrder, step: int, batch: int, rank: int, world: int) -> I64:
    """Return rank `rank`'s slice of global batch `step`, (batch / world,) int64."""
    share = batch // world
    start = step * batch + rank * share
    return order[start : start + share]
