"""Batches by duration: full, mixed, complete, and the same number in every epoch and on every rank."""

import itertools

import numpy as np
import pytest

from speechkit.data.buckets import DurationBuckets
from speechkit.errors import InputError

SECONDS = np.random.default_rng(0).gamma(4.0, 1.5, 500) + 0.3


def batches(sampler: DurationBuckets, epoch: int = 0) -> list[list[int]]:
    sampler.set_epoch(epoch)
    return [[index for _, index in batch] for batch in sampler]


def test_every_utterance_comes_once_in_every_epoch() -> None:
    sampler = DurationBuckets(SECONDS.tolist(), 60)
    for epoch in range(3):
        assert sorted(itertools.chain.from_iterable(batches(sampler, epoch))) == list(range(500))


def test_no_batch_holds_more_than_asked_for_and_little_of_it_is_padding() -> None:
    sampler = DurationBuckets(SECONDS.tolist(), 60)
    for epoch in range(5):
        padded = [len(batch) * SECONDS[batch].max() for batch in batches(sampler, epoch)]
        assert max(padded) <= 60
        assert SECONDS.sum() / sum(padded) > 0.9
        assert np.median(padded) > 50


def test_epochs_differ_but_have_the_same_number_of_batches() -> None:
    sampler = DurationBuckets(SECONDS.tolist(), 60)
    first, second = batches(sampler, 0), batches(sampler, 1)
    assert len(first) == len(second) == len(sampler)
    again = {frozenset(batch) for batch in first} & {frozenset(batch) for batch in second}
    assert len(again) < 0.1 * len(first)  # the very longest may meet again


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    assert batches(DurationBuckets(SECONDS.tolist(), 60, seed=3), 7) == batches(
        DurationBuckets(SECONDS.tolist(), 60, seed=3), 7
    )
    assert batches(DurationBuckets(SECONDS.tolist(), 60, seed=3)) != batches(
        DurationBuckets(SECONDS.tolist(), 60, seed=4)
    )


def test_the_epoch_travels_with_each_index() -> None:
    sampler = DurationBuckets(SECONDS.tolist(), 60)
    sampler.set_epoch(5)
    assert {epoch for batch in sampler for epoch, _ in batch} == {5}


def test_an_interrupted_epoch_goes_on_where_it_was() -> None:
    whole = batches(DurationBuckets(SECONDS.tolist(), 60), 2)
    resumed = DurationBuckets(SECONDS.tolist(), 60)
    resumed.set_epoch(2, start=11)
    assert [[index for _, index in batch] for batch in resumed] == whole[11:]
    assert len(resumed) == len(whole)
    assert batches(resumed, 2) == whole


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_processes_share_an_epoch_in_equal_numbers_of_batches(world_size: int) -> None:
    ranks = [DurationBuckets(SECONDS.tolist(), 60, rank=rank, world_size=world_size) for rank in range(world_size)]
    shares = [batches(sampler, 1) for sampler in ranks]
    assert {len(share) for share in shares} == {len(ranks[0])}
    everything = [index for share in shares for batch in share for index in batch]
    assert sorted(everything) == list(range(500))
    assert max(len(batch) * SECONDS[batch].max() for share in shares for batch in share) <= 60


def test_fewer_utterances_than_processes_are_repeated() -> None:
    shares = [batches(DurationBuckets([1.0, 2.0, 3.0], 60, rank=rank, world_size=4)) for rank in range(4)]
    assert [len(share) for share in shares] == [1, 1, 1, 1]
    assert {index for share in shares for batch in share for index in batch} == {0, 1, 2}


def test_limits_leave_out_and_count() -> None:
    sampler = DurationBuckets([0.05, 1, 2, 30, 31], 10, min_seconds=0.1, max_seconds=30)
    assert sorted(itertools.chain.from_iterable(batches(sampler))) == [1, 2, 3]
    assert sampler.left_out == 2


def test_an_utterance_longer_than_a_batch_is_a_batch_of_its_own() -> None:
    assert [3] in batches(DurationBuckets([1, 2, 3, 100], 10, shuffle=False))


def test_evaluation_keeps_one_order_from_the_longest_on() -> None:
    sampler = DurationBuckets(SECONDS.tolist(), 60, shuffle=False)
    order = list(itertools.chain.from_iterable(batches(sampler, 0)))
    assert order == list(itertools.chain.from_iterable(batches(sampler, 9)))
    assert np.all(np.diff(SECONDS[order]) <= 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seconds": [], "batch_seconds": 10}, "None of 0 utterances"),
        ({"seconds": [1.0], "batch_seconds": 10, "min_seconds": 5}, "None of 1 utterances is between 5 and inf s"),
        ({"seconds": [1.0], "batch_seconds": 0}, "positive batch_seconds"),
        ({"seconds": [1.0], "batch_seconds": 1, "rank": 2, "world_size": 2}, "rank 2 of 2"),
    ],
)
def test_what_makes_no_batches_is_said(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DurationBuckets(**arguments)  # type: ignore[arg-type]
