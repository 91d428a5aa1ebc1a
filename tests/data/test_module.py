"""The data module: what Lightning trains on, in which order, and that a resumed run goes on with the next batch."""

import logging
import multiprocessing
import os
import signal
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from speechkit import audio
from speechkit.data import mini
from speechkit.data.collate import Batch
from speechkit.data.module import SpeechDataModule
from speechkit.errors import InputError
from speechkit.text import SpacedWords

BATCHES = 7  # in an epoch of the corpus below


class Characters(SpacedWords):
    """A tokenizer small enough for a test."""

    vocab_size: int = 128

    def __init__(self) -> None:
        self.pieces = [chr(n) for n in range(128)]

    def encode(self, text: str) -> list[int]:
        return [ord(c) for c in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def save(self, folder: str | Path) -> None:
        raise NotImplementedError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for split, count in (("train", 28), ("dev", 5), ("test", 3)):
        folder = root / split / "1" / "2"
        folder.mkdir(parents=True)
        lines = []
        for number in range(count):
            audio.write(folder / f"1-2-{number:04d}.wav", rng.normal(0, 0.1, 1600 + 4 * number))
            lines.append(f"1-2-{number:04d} WORD {'AB' * (1 + number % 5)}\n")
        (folder / "1-2.trans.txt").write_text("".join(lines))
    return root


def module(corpus: Path, **changes: Any) -> SpeechDataModule:
    arguments: dict[str, Any] = {"train": ["train"], "valid": ["dev"], "test": ["test"], "batch_seconds": 0.5}
    data = SpeechDataModule(str(corpus), **{**arguments, **changes})
    data.tokenizer = Characters()
    return data


class Recorder(LightningModule):
    """Learns nothing and remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, tuple[str, ...], int]] = []  # epoch, ids, checksum of the audio
        self.validated = 0

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.seen.append((self.current_epoch, tuple(batch.ids), zlib.crc32(batch.wave.numpy().tobytes())))
        return self.weight.sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.validated += 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def jitter(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return wave + np.float32(rng.normal(0, 0.1))


def fit(
    corpus: Path, folder: Path, steps: int, checkpoint: Path | None = None, save: int = 100, **changes: Any
) -> tuple[Recorder, Path]:
    """Train up to a number of steps; the last checkpoint of that run (or where it would be)."""
    validate = changes.pop("validate", {"limit_val_batches": 0})
    saver = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=save, save_top_k=-1)
    task = Recorder()
    trainer = Trainer(
        accelerator="cpu", max_steps=steps, logger=False, callbacks=[saver], enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0, **validate,
    )  # fmt: skip
    trainer.fit(task, datamodule=module(corpus, transform=jitter, seed=3, **changes), ckpt_path=checkpoint)
    return task, folder / f"step={steps}.ckpt"


def test_the_corpus_has_the_batches_that_these_tests_count_on(corpus: Path) -> None:
    assert len(module(corpus).train_dataloader()) == BATCHES


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("stop", [4, BATCHES, BATCHES + 2])
def test_a_resumed_run_trains_on_the_batches_of_an_unbroken_one(
    corpus: Path, tmp_path: Path, workers: int, stop: int
) -> None:
    total = 2 * BATCHES + 3
    unbroken, _ = fit(corpus, tmp_path / "a", total, workers=workers)
    first, checkpoint = fit(corpus, tmp_path / "b", stop, save=stop, workers=workers)
    second, _ = fit(corpus, tmp_path / "c", total, checkpoint, workers=workers)
    assert [batch[1:] for batch in first.seen + second.seen] == [batch[1:] for batch in unbroken.seen]
    assert len(unbroken.seen) == total
    if stop % BATCHES:
        assert first.seen + second.seen == unbroken.seen


@pytest.mark.parametrize("save", ["validation", "epoch"])
def test_a_checkpoint_of_an_epochs_end_goes_on_with_the_next_epoch(corpus: Path, tmp_path: Path, save: str) -> None:
    total = 2 * BATCHES + 3
    unbroken, _ = fit(corpus, tmp_path / "a", total)
    saver = ModelCheckpoint(tmp_path, filename="end", save_on_train_epoch_end=save == "epoch", every_n_epochs=1)
    task = Recorder()
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, callbacks=[saver], enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(task, datamodule=module(corpus, transform=jitter, seed=3))
    later, _ = fit(corpus, tmp_path / "c", total, tmp_path / "end.ckpt", validate={})
    assert [batch[1:] for batch in task.seen + later.seen] == [batch[1:] for batch in unbroken.seen]


def test_validation_in_mid_epoch_does_not_disturb_a_resumed_run(corpus: Path, tmp_path: Path) -> None:
    often = {"val_check_interval": 3, "check_val_every_n_epoch": None}
    total = 2 * BATCHES + 3
    unbroken, _ = fit(corpus, tmp_path / "a", total, validate=dict(often))
    first, checkpoint = fit(corpus, tmp_path / "b", 6, save=6, validate=dict(often))
    second, _ = fit(corpus, tmp_path / "c", total, checkpoint, validate=dict(often))
    assert first.seen + second.seen == unbroken.seen
    assert unbroken.validated > 4


def test_short_epochs_of_the_trainer_go_through_the_whole_corpus(corpus: Path, tmp_path: Path) -> None:
    whole, _ = fit(corpus, tmp_path / "a", 2 * BATCHES)
    cut, _ = fit(corpus, tmp_path / "b", 2 * BATCHES, validate={"limit_train_batches": 5, "limit_val_batches": 0})
    assert [batch[1:] for batch in cut.seen] == [batch[1:] for batch in whole.seen]
    assert max(batch[0] for batch in cut.seen) == 2


def test_epochs_are_all_different_and_all_complete(corpus: Path, tmp_path: Path) -> None:
    task, _ = fit(corpus, tmp_path, 3 * BATCHES)
    epochs = [[batch[1] for batch in task.seen if batch[0] == epoch] for epoch in range(3)]
    for epoch in epochs:
        assert len({name for batch in epoch for name in batch}) == 28
    assert epochs[0] != epochs[1] != epochs[2]


def test_concatenated_utterances_come_beside_the_single_ones(corpus: Path) -> None:
    names = [name for batch in module(corpus, concatenate=3).train_dataloader() for name in batch.ids]
    alone, together = ([name for name in names if ("+" in name) == row] for row in (False, True))
    assert len(alone) == len(set(alone)) == 28
    again = [name for row in together for name in row.split("+")]
    assert len(again) == len(set(again)) >= 27  # the last may be left without a neighbour
    assert set(again) <= set(alone)


def test_a_changed_corpus_is_noticed_on_resuming(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, checkpoint = fit(corpus, tmp_path / "a", 4, save=4)
    fit(corpus, tmp_path / "b", 5, checkpoint)
    assert "differ" not in caplog.text
    fit(corpus, tmp_path / "c", 5, checkpoint, batch_seconds=0.3)
    assert "the data differ from those of the checkpoint (batches 7 -> " in caplog.text


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
    assert len(seen[0]) + len(seen[1]) == 28


def test_batches_carry_tokens_of_normalised_texts(corpus: Path) -> None:
    batch = next(iter(module(corpus).val_dataloader()))
    assert isinstance(batch, Batch)
    for row, text in enumerate(batch.texts):
        assert text == text.lower()
        assert batch.tokens[row, : batch.token_lengths[row]].tolist() == [ord(c) for c in text]


def test_what_was_skipped_is_counted_in_full_and_every_time(tmp_path: Path) -> None:
    audio.write(tmp_path / "good.wav", np.full(1600, 0.1))
    lines = [f"{name}.wav\tA WORD" for name in ("good", *(f"missing{i}" for i in range(40)))]
    lines.append("good.wav\twort 5")
    (tmp_path / "all.tsv").write_text("\n".join(lines))
    data = SpeechDataModule(None, test=[str(tmp_path / "all.tsv")], max_bad=0.99)
    for _ in range(2):
        kept, waves, skipped = data.waves(str(tmp_path / "all.tsv"))
        assert (len(kept), len(waves), len(skipped)) == (1, 1, 41)
        assert [f"missing{i}.wav" in skipped[i] for i in range(40)] == [True] * 40
        assert "unknown characters" in skipped[40]


def test_validation_is_one_loader_and_test_is_one_per_split(corpus: Path) -> None:
    data = module(corpus, valid=["dev", "test"], test=["test", "dev"], min_seconds=10)
    valid = data.val_dataloader()
    assert isinstance(valid, torch.utils.data.DataLoader)
    assert sum(len(batch.ids) for batch in valid) == 8  # no limits of duration here
    assert [sum(len(batch.ids) for batch in loader) for loader in data.test_dataloader()] == [3, 5]
    assert module(corpus, valid=[]).val_dataloader() == []


def test_limits_and_exclusions_are_counted_aloud(corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = module(corpus, max_seconds=0.1005)
    data.exclude({"1-2-0000"})
    ids = {name for batch in data.train_dataloader() for name in batch.ids}
    assert ids == {"1-2-0001", "1-2-0002"}
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        "left out of training: 1 utterances, such as 1-2-0000",
        "left out of training: 25 of 27 utterances, not 0.1 to 0.1005 s long",
    ]


def test_nothing_left_to_train_on_is_an_error(corpus: Path) -> None:
    with pytest.raises(InputError, match="None of 28 utterances is between 5 and 30 s long"):
        module(corpus, min_seconds=5).train_dataloader()


def test_without_a_root_the_embedded_corpus_is_made(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def prepare(cache_dir: Path, minutes: float) -> Path:
        calls.append((cache_dir, minutes))
        return corpus

    monkeypatch.setattr(mini, "prepare", prepare)
    monkeypatch.setattr(mini, "SPLITS", ("train", "dev", "test"))
    data = SpeechDataModule(train=["train"], valid=["dev"], test=["test"], cache_dir=str(tmp_path), mini_minutes=7)
    data.prepare_data()
    assert calls == [(tmp_path, 7)]
    assert len(data.texts(["train"])) == 28
    assert data.texts(["dev"])[0] == "word ab"


def test_the_embedded_corpus_can_be_added_to_another(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train-mini").symlink_to(corpus / "dev")
    monkeypatch.setattr(mini, "prepare", lambda *_: tmp_path)
    assert len(module(corpus, train=["train", "train-mini"]).utterances(["train", "train-mini"])) == 33


def test_workers_outlive_a_signal_to_end(corpus: Path) -> None:
    """Else the main process, which hears it as well, could not save what it has."""
    data = module(corpus, workers=1)
    data.setup("fit")
    loader = data.train_dataloader()
    batches = iter(loader)
    ids = list(next(batches).ids)
    for worker in multiprocessing.active_children():
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(worker.pid or 0, number)
    for batch in batches:
        ids += batch.ids
    assert len(ids) == 28
