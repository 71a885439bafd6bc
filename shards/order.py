"""Which sample comes when, for any number of ranks and workers: integers only.

Everything here is a pure function of its arguments, computed by hashing rather than by a random
generator's state. So an epoch can be entered at any step, by any number of ranks, and a sample's
draws do not depend on what else is in its batch.
"""

from __future__ import annotations

import hashlib
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


def epoch_order(seed: int, epoch: int, shard_sizes: Sequence[int], block: int = 1 << 18) -> I64:
    """Return the order of an epoch: a permutation of 0..N-1, (N,) int64.

    Whole shards are permuted and grouped into blocks of at least `block` samples, and samples
    shuffled inside each block. So a set of up to `block` samples is shuffled as a whole, and a
    larger one can be streamed shard by shard. Blocks of epoch 0 grow from one shard, each as large
    as all before it, so that the first batch of a set read from afar waits for one shard only.
    """
    sizes = np.asarray(shard_sizes, np.int64)
    starts = np.cumsum(sizes) - sizes
    order: list[I64] = []
    pending: list[I64] = []
    count = done = 0
    shards = shard_order(seed, epoch, len(sizes))
    for position, shard in enumerate(shards):
        pending.append(np.arange(starts[shard], starts[shard] + sizes[shard]))
        count += int(sizes[shard])
        if count >= (block if epoch else min(block, done)) or position == len(shards) - 1:
            samples = np.concatenate(pending)
            # Hashing the sample's own number: the shuffle does not depend on the block's number.
            hashes = mix64(samples.astype(np.uint64) ^ _salt(seed, epoch, "samples"))
            order.append(samples[np.argsort(hashes, kind="stable")])
            done += count
            pending, count = [], 0
    return np.concatenate(order)


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


def batch_indices(order: I64, step: int, batch: int, rank: int, world: int) -> I64:
    """Return rank `rank`'s slice of global batch `step`, (batch / world,) int64."""
    share = batch // world
    start = step * batch + rank * share
    return order[start : start + share]
