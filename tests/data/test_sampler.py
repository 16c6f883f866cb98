from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from data import DataError
from data.sampler import BatchIndices


def indices(size: int, batch_size: int, **others: Any) -> list[list[int]]:
    return list(BatchIndices(size, batch_size, **{"shuffle": False, "pad": False, **others}))


SIZES = [(1, 1), (7, 3), (12, 4), (13, 4), (100, 7), (3, 8)]


@pytest.mark.parametrize(("size", "world"), SIZES)
@pytest.mark.parametrize("shuffle", [False, True])
def test_evaluation_covers_every_image_exactly_once_over_all_ranks(
    size: int, world: int, shuffle: bool
) -> None:
    seen = Counter(
        index
        for rank in range(world)
        for batch in indices(size, 4, shuffle=shuffle, rank=rank, world_size=world)
        for index in batch
    )
    assert seen == Counter(range(size))


@pytest.mark.parametrize(("size", "world"), SIZES)
def test_training_gives_every_rank_equal_batches(size: int, world: int) -> None:
    shares = [
        indices(size, 4, shuffle=True, pad=True, rank=rank, world_size=world)
        for rank in range(world)
    ]
    shapes = {tuple(len(batch) for batch in share) for share in shares}
    assert len(shapes) == 1
    counts = Counter(index for share in shares for batch in share for index in batch)
    assert set(counts) == set(range(size))
    # The padding repeats as few images as it can, each as rarely as it can.
    assert sum(counts.values()) == -(-size // world) * world
    assert max(counts.values()) <= -(-world // size) + 1


def test_without_shuffling_the_order_is_that_of_the_data_set() -> None:
    assert indices(7, 3, pad=True) == [[0, 1, 2], [3, 4, 5], [6]]


def test_the_last_batch_is_kept_however_short() -> None:
    assert [len(b) for b in indices(10, 4, shuffle=True, pad=True)] == [4, 4, 2]


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        return indices(50, 50, shuffle=True, seed=seed, epoch=epoch)

    assert order(1, 2) == order(1, 2)
    orders = [tuple(order(seed, epoch)[0]) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9
    assert all(sorted(o) == list(range(50)) for o in orders)


@pytest.mark.parametrize("start", [0, 1, 3, 4])
def test_starting_later_leaves_out_the_first_batches_only(start: int) -> None:
    whole = indices(13, 4, shuffle=True, seed=5)
    rest = BatchIndices(13, 4, shuffle=True, pad=False, seed=5, start_batch=start)
    assert list(rest) == whole[start:]
    assert len(rest) == len(whole) - start


def test_it_can_be_iterated_again() -> None:
    batches = BatchIndices(9, 2, shuffle=True, pad=False)
    assert list(batches) == list(batches)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"start_batch": 4}, "start_batch is 4, allowed: 0 to 3"),
        ({"start_batch": -1}, "start_batch is -1"),
        ({"rank": 2, "world_size": 2}, "rank is 2, allowed: 0 to 1"),
        ({"rank": -1}, "rank is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"epoch": -1}, "epoch -1"),
    ],
)
def test_a_number_out_of_range_is_named(arguments: dict, words: str) -> None:
    options = {"batch_size": 4, "shuffle": False, "pad": True, **arguments}
    with pytest.raises(DataError, match=words):
        BatchIndices(10, **options)
