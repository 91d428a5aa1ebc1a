"""Crops: their length, place and level, and that they depend on (seed, epoch, index) alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speechkit import audio
from speechkit.data import mini
from speechkit.data.codec_module import CropDataModule
from speechkit.data.collate import Batch
from speechkit.data.crops import Crop, divided, recordings
from speechkit.data.loader import SpeechLoader
from speechkit.data.utterance import Utterance
from speechkit.errors import InputError

RATE = 8000
SECONDS = 0.25
SIZE = round(SECONDS * RATE)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders without a word of text: 17 recordings of 0.1 to 0.9 s at 16 kHz, one of them stereo, and 3 more."""
    root = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for split, count in (("train", 17), ("dev", 3)):
        (root / split / "inner").mkdir(parents=True)
        for number in range(count):
            shape = (1600 + 800 * number, 2) if number == 3 else (1600 + 800 * number,)
            audio.write(root / split / "inner" / f"{number:02d}.flac", rng.uniform(-0.3, 0.3, shape), 16_000)
    return root


def module(corpus: Path, **changes: Any) -> CropDataModule:
    arguments: dict[str, Any] = {"train": ["train"], "valid": ["dev"], "test": ["dev"], "crop_seconds": SECONDS}
    return CropDataModule(str(corpus), **{**arguments, "batch_size": 4, "rate": RATE, "seed": 5, **changes})


def epoch(data: CropDataModule, number: int = 0) -> list[Batch]:
    loader = data.train_dataloader()
    loader.buckets.set_epoch(number)
    return list(loader)


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        a.ids == b.ids and torch.equal(a.wave, b.wave) for a, b in zip(one, other, strict=True)
    )


def test_every_crop_has_its_length_and_batches_their_size(corpus: Path) -> None:
    batches = epoch(module(corpus))
    assert sorted(len(batch.ids) for batch in batches) == [1, 4, 4, 4, 4]
    assert len({name for batch in batches for name in batch.ids}) == 17
    for batch in batches:
        assert batch.wave.shape == (len(batch.ids), SIZE)
        assert batch.wave_lengths.tolist() == [SIZE] * len(batch.ids)


@pytest.mark.parametrize("cache", [False, True])
def test_crops_depend_on_seed_and_epoch_alone(corpus: Path, cache: bool) -> None:
    first = epoch(module(corpus, cache=cache))
    assert same(first, epoch(module(corpus, cache=cache, workers=1)))
    assert not same(first, epoch(module(corpus, cache=cache, seed=6)))
    assert not same(first, epoch(module(corpus, cache=cache), number=1))


def test_validation_hears_the_beginnings_at_one_level(corpus: Path) -> None:
    loader = module(corpus).val_dataloader()
    assert isinstance(loader, SpeechLoader)
    (batch,) = loader
    for name, wave in zip(batch.ids, batch.wave.numpy(), strict=True):
        whole = audio.read(corpus / "dev" / f"{name}.flac", RATE)
        whole = whole * 10 ** (-3 / 20) / np.abs(whole).max()
        expected = np.resize(whole, SIZE) if len(whole) < SIZE else whole[:SIZE]
        np.testing.assert_allclose(wave, expected, atol=1e-6)


def test_training_peaks_are_drawn_from_their_range() -> None:
    crop, rng = Crop(400), np.random.default_rng(0)
    wave = np.sin(np.arange(4000) / 3).astype(np.float32) * 0.01
    peaks = np.array([20 * np.log10(np.abs(crop(wave, rng)).max()) for _ in range(300)])
    assert peaks.min() >= -6.01
    assert peaks.max() <= -0.99
    assert peaks.max() - peaks.min() > 4.5


def test_the_level_is_of_the_whole_wave_so_that_a_pause_stays_quiet() -> None:
    wave = np.zeros(1000, np.float32)
    wave[900] = 0.5
    wave[:800] = 0.001
    found = Crop(500, (-3.0, -3.0), anywhere=False)(wave, np.random.default_rng(0))
    np.testing.assert_allclose(found, 0.002 * 10 ** (-3 / 20), rtol=1e-5)


def test_every_place_of_a_wave_is_heard() -> None:
    crop, rng, wave = Crop(3, (0.0, 0.0)), np.random.default_rng(0), np.arange(6, dtype=np.float32)
    heard = {tuple(np.round(crop(wave, rng) * 5).astype(int)) for _ in range(100)}
    assert heard == {(0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5)}


def test_short_waves_are_repeated_and_silence_stays_silent() -> None:
    crop, rng = Crop(7, (0.0, 0.0)), np.random.default_rng(0)
    assert crop(np.array([0.5, -1, 0.25], np.float32), rng).tolist() == [0.5, -1, 0.25, 0.5, -1, 0.25, 0.5]
    assert not crop(np.zeros(20, np.float32), rng).any()
    with pytest.raises(InputError, match="without samples"):
        crop(np.zeros(0, np.float32), rng)


def test_long_recordings_come_in_parts(corpus: Path) -> None:
    path = corpus / "train" / "inner" / "16.flac"
    whole = Utterance("a", str(path), "", 0.9, 16_000)
    parts = divided([whole, Utterance("b", str(path), "", 0.2, 16_000)], 0.4)
    assert [part.id for part in parts] == ["a-0", "a-1", "a-2", "b"]
    waves = [part.wave(16_000) for part in parts[:3]]
    np.testing.assert_array_equal(np.concatenate(waves), whole.wave(16_000)[: sum(map(len, waves))])
    assert sum(map(len, waves)) > 0.9 * 16_000 - 3 * 16 - 1
    (later,) = divided([Utterance("c", str(path), "", 0.3, 16_000, start=0.5)], 0.4)
    assert later.start == 0.5


def test_recordings_that_are_too_short_are_left_out(corpus: Path) -> None:
    ids = [name for batch in epoch(module(corpus, min_seconds=0.5)) for name in batch.ids]
    assert sorted(ids) == [f"inner/{n:02d}" for n in range(8, 17)]


def test_what_has_a_manifest_comes_from_it(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "manifests").mkdir()
    line = f'{{"id": "one", "path": "{corpus / "dev" / "inner" / "00.flac"}"}}'
    (tmp_path / "manifests" / "dev.jsonl").write_text(line)
    assert [u.id for u in recordings("dev", tmp_path, tmp_path)] == ["one"]
    assert len(recordings(str(corpus / "dev"), None, tmp_path)) == 3
    with pytest.raises(InputError, match="There is no split absent"):
        recordings("absent", tmp_path, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="there is no audio"):
        recordings("empty", tmp_path, tmp_path)


def test_processes_get_shares_of_one_epoch(corpus: Path) -> None:
    class Rank:
        """What the module asks a trainer for."""

        world_size, training = 2, False

        def __init__(self, rank: int) -> None:
            self.global_rank = rank

    seen = []
    for rank in range(2):
        data = module(corpus)
        data.trainer = Rank(rank)  # type: ignore[assignment]
        seen.append([name for batch in data.train_dataloader() for name in batch.ids])
    assert not set(seen[0]) & set(seen[1])
    assert len(seen[0]) + len(seen[1]) == 17


def test_the_embedded_corpus_is_heard_at_the_models_rate(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def prepare(*_: object, rate: int) -> Path:
        asked.append(rate)
        return corpus

    monkeypatch.setattr(mini, "prepare", prepare)
    monkeypatch.setattr(mini, "SPLITS", ("train", "dev"))
    data = CropDataModule(train=["train"], valid=["dev"], crop_seconds=0.5, rate=24_000, cache_dir=str(tmp_path))
    (batch,) = data.train_dataloader()
    assert batch.wave.shape == (17, 12_000)
    assert data.waves("dev")[1][0].shape == (2400,)
    assert set(asked) == {24_000}
    assert CropDataModule(rate=8_000, cache_dir=str(tmp_path)).waves("dev")[1][0].shape == (800,)
    assert asked[-1] == 16_000  # one corpus for all lower rates


@pytest.mark.parametrize("changes", [{"crop_seconds": 0.0}, {"batch_size": 0}, {"valid_batch_size": 0}])
def test_batches_of_nothing_are_refused(corpus: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="batches need crops of some length"):
        module(corpus, **changes)


@pytest.mark.parametrize("peak_db", [(-1.0, -6.0), (-1.0, 2.0), (-1.0,)])
def test_levels_that_are_none_are_refused(peak_db: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="peak_db must be"):
        Crop(10, peak_db)
