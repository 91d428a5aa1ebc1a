"""The Lightning data module of speech with text: any corpora, the embedded one where none is named."""

import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, device, from_numpy

from speechkit.data import mini
from speechkit.data.buckets import DurationBuckets
from speechkit.data.collate import Batch
from speechkit.data.concatenation import Row, rows
from speechkit.data.crops import recordings
from speechkit.data.dataset import SpeechDataset, Transform
from speechkit.data.loader import SpeechLoader
from speechkit.data.manifest import find
from speechkit.data.transcripts import transcribed
from speechkit.data.utterance import MAX_BAD, Report, Usable, Utterance, normalized
from speechkit.errors import InputError
from speechkit.text import Tokenizer

log = logging.getLogger(__name__)


class SpeechDataModule(LightningDataModule):
    """Speech with text, in batches by duration.

    A split is the name of a folder below `root` (LibriSpeech's layout, or ROOT/manifests/SPLIT.jsonl), the path of
    such a folder, a manifest (.jsonl, .tsv), an LJSpeech or Lhotse Shar folder, or a split of the embedded corpus.
    `tokenizer` is set from outside, once there is one: it is trained on `texts`.

    Training resumes in mid-epoch at the batch after the last one trained, for the place is the trainer's own count.

    Args:
        root: the corpus; None is the embedded one.
        train, valid, test: splits.
        batch_seconds: padded audio per training batch and process.
        valid_batch_seconds: the same for validation and test; None is `batch_seconds`.
        workers: processes that decode, per loader; 0 decodes in the main process.
        seed: of the order and of what `transform` draws.
        rate: sample rate of the batches, Hz.
        min_seconds: shorter training utterances are left out.
        max_seconds: longer training utterances are left out.
        concatenate: up to so many utterances also come as one, within `max_seconds` (`concatenation.rows`); 1: none do.
        transform: changes training waves, (wave, generator) -> wave.
        cache_dir: for the embedded corpus and unpacked shards; None is the user's cache folder.
        cache: keep the decoded audio in memory (115 MB an hour at 16 kHz), for corpora of a few hours.
        normalize: texts become lower-case English words (`text.normalize`); False takes them as they are.
        max_bad: fraction of a split that may be missing, broken or without a usable text.
        mini_minutes: size of the embedded corpus' train-mini.
    """

    def __init__(
        self,
        root: str | None = None,
        train: Sequence[str] = ("train-mini",),
        valid: Sequence[str] = ("dev-mini",),
        test: Sequence[str] = ("test-mini", "test-mini-noisy"),
        batch_seconds: float = 48.0,
        valid_batch_seconds: float | None = None,
        workers: int = 0,
        seed: int = 0,
        rate: int = 16_000,
        min_seconds: float = 0.1,
        max_seconds: float = 30.0,
        concatenate: int = 1,
        transform: Transform | None = None,
        cache_dir: str | None = None,
        cache: bool = False,
        normalize: bool = True,
        max_bad: float = MAX_BAD,
        mini_minutes: float = 180.0,
    ) -> None:
        super().__init__()
        self.root = None if root is None else Path(root).expanduser()
        self.train, self.valid, self.test = ([s] if isinstance(s, str) else list(s) for s in (train, valid, test))
        self.batch_seconds, self.valid_batch_seconds = batch_seconds, valid_batch_seconds or batch_seconds
        self.workers, self.seed, self.rate = workers, seed, rate
        self.min_seconds, self.max_seconds = min_seconds, max_seconds
        self.concatenate = concatenate
        self.transform, self.cache, self.normalize, self.max_bad = transform, cache, normalize, max_bad
        self.cache_dir = mini.default_cache() if cache_dir is None else Path(cache_dir).expanduser()
        self.mini_minutes = mini_minutes
        self.tokenizer: Tokenizer | None = None
        self._splits: dict[str, Usable] = {}
        self._excluded: frozenset[str] = frozenset()

    def prepare_data(self) -> None:
        """Make the embedded corpus where one of its splits is used and it is not in the cache yet."""
        if any(self._embedded(name) for name in (*self.train, *self.valid, *self.test)):
            rank_zero_info(f"embedded corpus: {self._mini_root()}")

    def utterances(self, splits: Sequence[str]) -> list[Utterance]:
        """What the splits hold, checked, with normalised texts.

        Raises:
            InputError: no such split, or too much of it is missing, broken or without a usable text.
        """
        return list(itertools.chain.from_iterable(self._split(name) for name in splits))

    def waves(self, split: str, limit: int | None = None) -> tuple[list[Utterance], list[Tensor], list[str]]:
        """Utterances of a split, the first ones, their audio (samples,), and a sentence for each that was skipped.

        Raises:
            InputError: there is no such split, or more of it than `max_bad` cannot be used.
        """
        checked = self._split(split)
        report, waves = Report([], []), []
        for utterance in checked[:limit]:
            try:
                waves.append(from_numpy(utterance.wave(self.rate)))
                report.good.append(utterance)
            except InputError as error:
                report.bad.append(str(error))
        heard = report.within(self.max_bad, split)
        return heard, waves, [*checked.bad, *heard.bad]

    def readable(self, splits: Sequence[str], limit: int | None) -> Iterator[tuple[str, list[Utterance], list[Tensor]]]:
        """What `waves` gives of each split, but for those that cannot be read, which the log names.

        For scores after a training: what was trained is worth more than they are.
        """
        for split in splits:
            try:
                kept, waves, _ = self.waves(split, limit)
            except InputError as error:
                log.warning("not scored: %s", error)
                continue
            log.info("%s: scoring %d utterances", split, len(kept))
            yield split, kept, waves

    def recordings(self, split: str) -> Usable:
        """What a split holds as sound, of any length, with the texts that lie beside it, as they are written.

        Any folder with audio files will do. Raises as `crops.recordings`.
        """
        root = self._mini_root() if self._embedded(split) else self.root
        found = recordings(split, root, self.cache_dir, self.max_bad)
        return Usable(transcribed(found), found.bad)

    def texts(self, splits: Sequence[str]) -> list[str]:
        """All transcripts of the splits, to train a tokenizer on."""
        return [utterance.text for utterance in self.utterances(splits)]

    def exclude(self, ids: set[str]) -> None:
        """Leave utterances out of training, such as those that a loss cannot take."""
        self._excluded = frozenset(ids)
        if ids:
            log.warning("left out of training: %d utterances, such as %s", len(ids), min(ids))

    def train_dataloader(self) -> SpeechLoader:
        """Shuffled, augmented, resumable."""
        chosen = [utterance for utterance in self.utterances(self.train) if utterance.id not in self._excluded]
        concatenated = rows(chosen, self.concatenate, self.max_seconds, self.seed)
        dataset = self._dataset(chosen, self.transform, substitute=True, rows=concatenated)
        buckets = self._buckets(
            dataset.seconds,
            self.batch_seconds,
            shuffle=True,
            min_seconds=self.min_seconds,
            max_seconds=self.max_seconds,
        )
        if buckets.left_out:
            log.warning(
                "left out of training: %d of %d utterances, not %g to %g s long",
                *(buckets.left_out, len(dataset), self.min_seconds, self.max_seconds),
            )
        return SpeechLoader(dataset, buckets, self.workers, self.max_bad, self._trained)

    def val_dataloader(self) -> SpeechLoader | list[SpeechLoader]:
        """All validation splits as one, in fixed order; an empty list where there are none."""
        return self._evaluation(self.valid) if self.valid else []

    def test_dataloader(self) -> list[SpeechLoader]:
        """One loader per test split, in fixed order."""
        return [self._evaluation([name]) for name in self.test]

    def transfer_batch_to_device(self, batch: Batch, device: device, dataloader_idx: int) -> Batch:
        """Moves the tensors; Lightning's own way looks at every id and text."""
        tensors = (batch.wave, batch.wave_lengths, batch.tokens, batch.token_lengths)
        wave, wave_lengths, tokens, token_lengths = (part.to(device, non_blocking=True) for part in tensors)
        return batch._replace(wave=wave, wave_lengths=wave_lengths, tokens=tokens, token_lengths=token_lengths)

    def _evaluation(self, splits: Sequence[str]) -> SpeechLoader:
        dataset = self._dataset(self.utterances(splits), None)
        buckets = self._buckets(dataset.seconds, self.valid_batch_seconds, shuffle=False)
        return SpeechLoader(dataset, buckets, 0 if self.cache else self.workers, self.max_bad)

    def _buckets(
        self,
        seconds: Sequence[float],
        batch_seconds: float,
        shuffle: bool,
        min_seconds: float = 0.0,
        max_seconds: float = float("inf"),
    ) -> DurationBuckets:
        trainer = self.trainer
        rank, world_size = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
        return DurationBuckets(
            seconds,
            batch_seconds,
            seed=self.seed,
            shuffle=shuffle,
            min_seconds=min_seconds,
            max_seconds=max_seconds,
            rank=rank,
            world_size=world_size,
        )

    def _dataset(
        self,
        utterances: Sequence[Utterance],
        transform: Transform | None,
        substitute: bool = False,
        rows: Sequence[Row] | None = None,
    ) -> SpeechDataset:
        encode = None if self.tokenizer is None else self.tokenizer.encode
        dataset = SpeechDataset(utterances, self.rate, encode, transform, self.seed, substitute, rows)
        if self.cache:
            dataset.preload()
        return dataset

    def _trained(self) -> int | None:
        """Batches trained in all epochs, those before a resume included; prefetched ones do not count."""
        if self.trainer is None or not self.trainer.training:
            return None
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.completed

    def _split(self, name: str) -> Usable:
        if name not in self._splits:
            root = self._mini_root() if self._embedded(name) else self.root
            found = find(name, root, self.cache_dir, self.max_bad)
            if self.normalize:
                clean = normalized(found).within(self.max_bad, name)
                found = Usable(clean, [*found.bad, *clean.bad])
            self._splits[name] = found
        return self._splits[name]

    def _embedded(self, name: str) -> bool:
        return name in mini.SPLITS and (self.root is None or not (self.root / name).is_dir())

    def _mini_root(self) -> Path:
        return mini.prepare(self.cache_dir, self.mini_minutes)
