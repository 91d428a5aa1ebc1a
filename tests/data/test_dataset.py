"""Items depend on (seed, epoch, index) alone, and what cannot be read is named, counted and replaced."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from speechkit import audio
from speechkit.data.buckets import DurationBuckets
from speechkit.data.collate import PAD, Bad, Batch, Item, collate
from speechkit.data.dataset import SpeechDataset
from speechkit.data.loader import SpeechLoader
from speechkit.data.utterance import Utterance
from speechkit.errors import InputError

RATE = 8000


def noisy(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return wave[: rng.integers(len(wave) // 2, len(wave))] + rng.normal(0, 0.01)


@pytest.fixture
def utterances(tmp_path: Path) -> list[Utterance]:
    rng = np.random.default_rng(0)
    made = []
    for number in range(12):
        seconds = 0.2 + 0.05 * number
        path = tmp_path / f"{number}.flac"
        audio.write(path, rng.normal(0, 0.1, round(seconds * RATE)), RATE)
        made.append(Utterance(f"u{number}", str(path), "ab" * number, seconds, RATE))
    return made


def encode(text: str) -> list[int]:
    return [ord(c) for c in text]


def loader(utterances: list[Utterance], workers: int = 0, **more: object) -> SpeechLoader:
    dataset = SpeechDataset(utterances, RATE, encode, noisy, seed=1, substitute=True)
    if more.pop("cache", False):
        dataset.preload()
    return SpeechLoader(dataset, DurationBuckets([u.seconds for u in utterances], 1.5, seed=1), workers, **more)  # type: ignore[arg-type]


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        x.ids == y.ids and torch.equal(x.wave, y.wave) and torch.equal(x.tokens, y.tokens)
        for x, y in zip(a, b, strict=True)
    )


def test_a_batch_is_padded_and_says_its_lengths() -> None:
    items: list[Item | Bad] = [
        Item(np.ones(3, np.float32), [7, 8], "a", "x"),
        Item(np.ones(5, np.float32), [9], "b", "y"),
        Bad("c", "why"),
    ]
    batch = collate(items)
    assert batch.wave.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch.tokens.tolist() == [[7, 8], [9, PAD]]
    assert (batch.wave_lengths.tolist(), batch.token_lengths.tolist()) == ([3, 5], [2, 1])
    assert (batch.ids, batch.texts, batch.bad) == (["a", "b"], ["x", "y"], [Bad("c", "why")])
    assert (batch.wave.dtype, batch.tokens.dtype) == (torch.float32, torch.int64)


def test_an_item_depends_on_seed_epoch_and_index_alone(utterances: list[Utterance]) -> None:
    first, second = (SpeechDataset(utterances, RATE, encode, noisy, seed=5) for _ in range(2))
    first[0, 3]
    one, other, later = first[2, 4], second[2, 4], second[3, 4]
    assert isinstance(one, Item)
    assert isinstance(other, Item)
    assert isinstance(later, Item)
    np.testing.assert_array_equal(one.wave, other.wave)
    assert not np.array_equal(one.wave[:100], later.wave[:100])


def test_workers_do_not_change_what_is_loaded(utterances: list[Utterance]) -> None:
    alone, with_workers = loader(utterances), loader(utterances, workers=2)
    for epoch in range(2):
        for each in (alone, with_workers):
            each.buckets.set_epoch(epoch)
        assert same(list(alone), list(with_workers))


def test_the_cache_does_not_change_what_is_loaded(utterances: list[Utterance]) -> None:
    assert same(list(loader(utterances)), list(loader(utterances, cache=True)))


def test_what_is_listed_twice_is_decoded_once(utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    wave = Utterance.wave

    def counted(self: Utterance, rate: int) -> np.ndarray:
        heard.append(self.id)
        return wave(self, rate)

    monkeypatch.setattr(Utterance, "wave", counted)
    dataset = SpeechDataset([*utterances, *utterances], RATE, encode)
    dataset.preload()
    assert sorted(heard) == sorted(utterance.id for utterance in utterances)
    once, again = dataset[0, 2], dataset[0, 2 + len(utterances)]
    assert isinstance(once, Item)
    assert isinstance(again, Item)
    np.testing.assert_array_equal(once.wave, again.wave)


def test_a_row_is_its_utterances_one_after_the_other(utterances: list[Utterance]) -> None:
    dataset = SpeechDataset(utterances, RATE, encode, rows=[(0,), (3, 4, 5), (9, 10), (11,)] * 4)
    alone = [SpeechDataset(utterances, RATE, encode)[0, index] for index in (3, 4, 5)]
    row = dataset[0, 1]
    assert isinstance(row, Item)
    np.testing.assert_array_equal(row.wave, np.concatenate([item.wave for item in alone if isinstance(item, Item)]))
    assert (row.id, row.text) == ("u3+u4+u5", "ababab abababab ababababab")
    assert row.tokens == encode(row.text)
    dataset.preload()
    cached = dataset[0, 1]
    assert isinstance(cached, Item)
    np.testing.assert_array_equal(row.wave, cached.wave)
    assert (len(dataset), dataset.seconds[:2]) == (16, [0.2, pytest.approx(0.35 + 0.4 + 0.45)])


def test_a_broken_file_takes_its_row_along_under_its_own_name(utterances: list[Utterance]) -> None:
    Path(utterances[4].path).write_bytes(b"")
    bad = SpeechDataset(utterances, RATE, rows=[(3, 4, 5)])[0, 0]
    assert isinstance(bad, Bad)
    assert bad.id == "u4"


def test_any_rate_becomes_the_one_asked_for(utterances: list[Utterance]) -> None:
    item = SpeechDataset(utterances, 16_000)[0, 6]
    assert isinstance(item, Item)
    assert len(item.wave) == 8000
    assert item.tokens == []


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("cache", [False, True])
def test_a_broken_file_is_reported_once_and_skipped(
    utterances: list[Utterance], caplog: pytest.LogCaptureFixture, workers: int, cache: bool
) -> None:
    broken = Path(utterances[5].path)
    broken.write_bytes(broken.read_bytes()[:300])
    batches = loader(utterances, workers, cache=cache)
    for _ in range(2):
        ids = [name for batch in batches for name in batch.ids]
        assert sorted(ids) == sorted({u.id for u in utterances} - {"u5"})
    messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(messages) == 1
    assert str(broken) in messages[0]


def test_too_many_broken_files_are_an_error(utterances: list[Utterance]) -> None:
    for utterance in utterances[::3]:
        Path(utterance.path).write_bytes(b"")
    with pytest.raises(InputError, match=r"4 of 12 utterances could not be loaded, more than the limit of 3; .*empty"):
        list(loader(utterances, workers=1))
    assert sum(len(batch.ids) for batch in loader(utterances, max_bad=0.5)) >= 8


def test_a_batch_of_broken_files_alone_is_filled_in_training_and_left_out_in_evaluation(
    utterances: list[Utterance],
) -> None:
    Path(utterances[11].path).write_bytes(b"")
    seconds = [u.seconds for u in utterances]
    for substitute, count in ((True, 12), (False, 11)):
        dataset = SpeechDataset(utterances, RATE, substitute=substitute)
        each = SpeechLoader(dataset, DurationBuckets(seconds, 0.1, shuffle=False))
        assert len([batch for batch in each if len(batch.ids) == 1]) == count


def test_an_unreadable_text_is_reported_like_an_unreadable_file(utterances: list[Utterance]) -> None:
    def refuse(text: str) -> list[int]:
        raise InputError(f"cannot spell {text}")

    assert SpeechDataset(utterances, RATE, refuse)[0, 1] == Bad("u1", "cannot spell ab")
