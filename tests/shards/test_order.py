"""Laws of the order, over more than 2,000 combinations of sizes."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from clsp.shards.order import (
    EpochOrder,
    batch_indices,
    check_batch,
    epoch_order,
    hash_key,
    mix64,
    shard_order,
    steps_per_epoch,
    uniforms,
)

SAMPLES = [*range(1, 201), 1003, 10007]
GOLDEN_ORDERS = [[1, 2, 0, 3, 6, 8, 9, 5, 4, 7], [4, 3, 6, 9, 0, 5, 8, 7, 1, 2]]
GOLDEN_HASH = 146600087390296774
GOLDEN_UNIFORMS = [[0.21894071268460458, 0.8233931282437041, 0.798499710517272]]
WORLDS = (1, 2, 3, 4, 5, 6, 7, 8, 16)


def shard_sizes(samples: int, kind: str) -> list[int]:
    if kind == "one":
        return [samples]
    if kind == "ones":
        return [1] * samples
    sizes, size = [], 1  # uneven: 1, 2, 3, ... and what is left
    while sum(sizes) + size < samples:
        sizes.append(size)
        size += 1
    return [*sizes, samples - sum(sizes)]


@pytest.mark.parametrize("kind", ["one", "ones", "uneven"])
def test_laws_of_the_order(kind: str) -> None:
    checked = 0
    for samples, world in product(SAMPLES, WORLDS):
        share = max(1, min(4, samples // world))
        batch = share * world
        if batch > samples:
            continue
        order = epoch_order(0, 3, shard_sizes(samples, kind))
        assert np.array_equal(np.sort(order), np.arange(samples))
        steps = steps_per_epoch(samples, batch)
        # Each sample once, but for those of the dropped last global batch.
        whole = [batch_indices(order, step, batch, 0, 1) for step in range(steps)]
        seen = np.concatenate(whole)
        assert len(np.unique(seen)) == len(seen) == samples - samples % batch
        # The ranks' slices, side by side, are the same global batch.
        for step in {0, steps // 2, steps - 1}:
            parts = [batch_indices(order, step, batch, rank, world) for rank in range(world)]
            assert {len(part) for part in parts} == {share}
            assert np.array_equal(np.concatenate(parts), whole[step])
        checked += 1
    assert checked > 1700


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_workers_take_steps_and_change_nothing(workers: int) -> None:
    """torch's own loader hands step numbers to its workers; what comes back is in order."""
    from torch.utils.data import DataLoader, Dataset

    class Steps(Dataset):
        def __getitem__(self, step: int) -> np.ndarray:
            epoch, position = divmod(step, 14)
            return batch_indices(epoch_order(0, epoch, [30, 40, 47]), position, 8, 1, 2)

    loader = DataLoader(
        Steps(), batch_size=None, sampler=range(5, 33), num_workers=workers, collate_fn=np.asarray
    )
    for step, found in zip(range(5, 33), loader, strict=True):
        assert np.array_equal(found, Steps()[step])


def test_epochs_and_seeds_differ_and_repeat() -> None:
    sizes = [50, 100, 53]
    first = epoch_order(0, 0, sizes)
    assert np.array_equal(first, epoch_order(0, 0, sizes))
    for other in (epoch_order(0, 1, sizes), epoch_order(1, 0, sizes)):
        assert (first == other).mean() < 0.05


def test_large_sets_are_shuffled_in_blocks_of_whole_shards() -> None:
    order = epoch_order(0, 1, [10] * 30, block=50)
    for start in range(0, 300, 50):
        block = order[start : start + 50]
        assert len(set(block // 10)) == 5  # five whole shards
        assert not np.array_equal(block, np.sort(block))


def test_blocks_of_the_first_epoch_grow_from_one_shard() -> None:
    order = epoch_order(0, 0, [10] * 30, block=50)
    shards = shard_order(0, 0, 30)
    start = 0
    for size in (1, 1, 2, 4, 5, 5, 5, 5, 2):  # in shards: the block, until it is large enough
        block = order[10 * start : 10 * (start + size)]
        assert set(block // 10) == set(shards[start : start + size])
        start += size
    assert start == 30


def test_every_place_is_as_likely() -> None:
    """A chi-squared bound: where sample 0 of 20 lands over 4,000 epochs."""
    places = [int(np.flatnonzero(epoch_order(0, e, [7, 13]) == 0)[0]) for e in range(4000)]
    counts = np.bincount(places, minlength=20)
    chi2 = ((counts - 200) ** 2 / 200).sum()
    assert chi2 < 43.8  # 0.1 % of chi-squared with 19 degrees of freedom lie above


def test_the_order_is_fixed_for_all_time() -> None:
    """Golden values: a change would break every run that is to be resumed."""
    assert [epoch_order(0, epoch, [4, 6]).tolist() for epoch in (0, 1)] == GOLDEN_ORDERS
    assert hash_key("digits-00000") == GOLDEN_HASH
    drawn = uniforms(1, 2, np.array([GOLDEN_HASH], np.uint64), "view0", 3)
    np.testing.assert_allclose(drawn, GOLDEN_UNIFORMS, rtol=1e-15)


def test_splitmix64_is_the_published_generator() -> None:
    """Its outputs from state 0: the known first values of splitmix64 seeded with 0."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    states = np.array([0, 1, 2], np.uint64) * golden
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert mix64(states).tolist() == expected


def test_uniforms_are_uniform_and_a_rows_own() -> None:
    keys = np.array([hash_key(str(n)) for n in range(2000)], np.uint64)
    drawn = uniforms(0, 0, keys, "a", 8)
    assert drawn.shape == (2000, 8)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts = np.histogram(drawn, bins=20, range=(0, 1))[0]
    assert ((counts - 800) ** 2 / 800).sum() < 43.8
    correlation = np.corrcoef(drawn.T) - np.eye(8)
    assert abs(correlation).max() < 0.09
    assert np.array_equal(uniforms(0, 0, keys[5:9], "a", 8), drawn[5:9])
    assert np.array_equal(uniforms(0, 0, keys, "a", 3), drawn[:, :3])
    for other in (uniforms(0, 0, keys, "b", 8), uniforms(0, 1, keys, "a", 8)):
        assert not (other == drawn).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 0, 1), "batch is 0"),
        ((10, 11, 1), "batch 11 is larger than the set of 10"),
        ((10, 9, 2), "batch 9 cannot be divided among 2 ranks"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_batch(*arguments)
    check_batch(10, 10, 2)


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_slice_is_the_whole_orders_whichever_was_asked_for_before(epoch: int) -> None:
    """Among blocks of several shards, and a batch that lies in two or three of them."""
    order, whole = (
        EpochOrder(0, epoch, [7, 3, 9] * 20, 30),
        epoch_order(0, epoch, [7, 3, 9] * 20, 30),
    )
    assert len(order) == len(whole) == 380
    assert len(order.stops) > 8
    for start in (*range(0, 380, 11), 5, 370, 0):
        for length in (1, 11, 70):
            assert np.array_equal(order[start : start + length], whole[start : start + length])
