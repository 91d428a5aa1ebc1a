"""Rows of utterances: complete, of one speaker, in the corpus' order and within the limit."""

import itertools

import pytest

from speechkit.data.concatenation import rows
from speechkit.data.utterance import Utterance
from speechkit.errors import InputError


def corpus(speakers: str, seconds: float = 2.0) -> list[Utterance]:
    return [
        Utterance(f"u{number}", f"{number}.flac", "a", seconds, 16_000, speaker=speaker)
        for number, speaker in enumerate(speakers)
    ]


def test_without_concatenation_each_utterance_is_a_row() -> None:
    assert rows(corpus("aab")) == [(0,), (1,), (2,)]


@pytest.mark.parametrize("seed", range(5))
def test_every_utterance_comes_alone_and_the_rows_are_of_one_speaker_in_order(seed: int) -> None:
    utterances = corpus("aaaaaaabbbbbc" * 3)
    found = rows(utterances, most=4, seed=seed)
    assert found[: len(utterances)] == [(index,) for index in range(len(utterances))]
    together = found[len(utterances) :]
    assert {len(row) for row in together} >= {2, 3}
    for row in together:
        assert 2 <= len(row) <= 4
        assert list(row) == list(range(row[0], row[-1] + 1))
        assert len({utterances[index].speaker for index in row}) == 1
    once = list(itertools.chain.from_iterable(together))
    assert len(once) == len(set(once)) >= len(utterances) - 12
    assert found == rows(utterances, most=4, seed=seed)


def test_a_row_of_several_is_within_the_limit() -> None:
    together = [row for row in rows(corpus("a" * 50), most=10, max_seconds=6.5) if len(row) > 1]
    assert {len(row) for row in together} == {2, 3}
    assert rows(corpus("aaaa"), most=3, max_seconds=3.9) == [(0,), (1,), (2,), (3,)]


def test_a_row_of_none_is_refused() -> None:
    with pytest.raises(InputError, match="at least 1, got 0"):
        rows(corpus("a"), most=0)
