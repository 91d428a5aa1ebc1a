"""The Lightning data module of audio without text: batches of crops, from any corpora."""

from collections.abc import Sequence
from pathlib import Path

from speechkit.data import mini
from speechkit.data.buckets import BLUR, DurationBuckets
from speechkit.data.concatenation import Row
from speechkit.data.crops import Crop, divided, recordings
from speechkit.data.dataset import SpeechDataset, Transform
from speechkit.data.module import SpeechDataModule
from speechkit.data.reading import SAMPLE_RATE
from speechkit.data.utterance import MAX_BAD, Usable, Utterance
from speechkit.errors import InputError

LONGEST_S = 30.0  # of what is decoded for one crop


class CropDataModule(SpeechDataModule):
    """Crops of one length: drawn anew in every epoch in training, the first of each recording in validation.

    Splits are named as for `SpeechDataModule`, and may be any folders with audio files. Resuming, processes, damaged
    files and the embedded corpus are its as well.

    Args:
        root: the corpus; None is the embedded one.
        train, valid, test: splits; those of `test` are not cut.
        crop_seconds: length of a crop.
        batch_size: crops in a batch of one process.
        valid_batch_size: the same for validation; None is `batch_size`.
        peak_db: level of the training waves' peaks, (low, high), full scale being 0.
        valid_peak_db: level of the validation waves' peaks.
        workers, seed, cache_dir, max_bad, mini_minutes: as for `SpeechDataModule`.
        cache: as there. What it keeps is rounded to 16 bits: where recordings of a lower rate have nothing, that is
            noise, which spectra show and files do not have.
        rate: sample rate of the crops and, where over 16 kHz, of the embedded corpus, Hz.
        min_seconds: shorter training recordings are left out; those shorter than a crop are repeated.

    Raises:
        InputError: a crop of no length, or a batch of no crops.
    """

    def __init__(
        self,
        root: str | None = None,
        train: Sequence[str] = ("train-mini",),
        valid: Sequence[str] = ("dev-mini",),
        test: Sequence[str] = ("test-mini", "test-mini-noisy"),
        crop_seconds: float = 3.0,
        batch_size: int = 40,
        valid_batch_size: int | None = None,
        peak_db: Sequence[float] = (-6.0, -1.0),
        valid_peak_db: float = -3.0,
        workers: int = 0,
        seed: int = 0,
        rate: int = 24_000,
        min_seconds: float = 0.1,
        cache_dir: str | None = None,
        cache: bool = False,
        max_bad: float = MAX_BAD,
        mini_minutes: float = 180.0,
    ) -> None:
        if crop_seconds <= 0 or min(batch_size, batch_size if valid_batch_size is None else valid_batch_size) < 1:
            raise InputError(
                f"batches need crops of some length and at least one of them, got {crop_seconds} s, "
                f"{batch_size} in training and {valid_batch_size} in validation"
            )
        samples = round(crop_seconds * rate)
        super().__init__(
            root, train, valid, test, batch_size, valid_batch_size, workers, seed, rate, min_seconds,
            transform=Crop(samples, peak_db), cache_dir=cache_dir, cache=cache, normalize=False, max_bad=max_bad,
            mini_minutes=mini_minutes,
        )  # fmt: skip
        self.valid_crop = Crop(samples, (valid_peak_db, valid_peak_db), anywhere=False)

    def utterances(self, splits: Sequence[str]) -> list[Utterance]:
        """What the splits hold, long recordings in parts; raises as `recordings`."""
        return divided(super().utterances(splits), LONGEST_S)

    def _split(self, name: str) -> Usable:
        if name not in self._splits:
            root = self._mini_root() if self._embedded(name) else self.root
            self._splits[name] = recordings(name, root, self.cache_dir, self.max_bad)
        return self._splits[name]

    def _mini_root(self) -> Path:
        return mini.prepare(self.cache_dir, self.mini_minutes, rate=max(self.rate, SAMPLE_RATE))

    def _dataset(
        self,
        utterances: Sequence[Utterance],
        transform: Transform | None,
        substitute: bool = False,
        rows: Sequence[Row] | None = None,
    ) -> SpeechDataset:
        return super()._dataset(utterances, transform or self.valid_crop, substitute, rows)

    def _buckets(
        self,
        seconds: Sequence[float],
        batch_seconds: float,
        shuffle: bool,
        min_seconds: float = 0.0,
        max_seconds: float = float("inf"),
    ) -> DurationBuckets:
        """Batches of so many crops, whatever they were cut from: for the sampler each lasts a second."""
        crops = [1.0 if each >= min_seconds else 0.0 for each in seconds]
        room = (batch_seconds + 0.5) * ((1 + BLUR) / (1 - BLUR) if shuffle else 1.0)
        return super()._buckets(crops, room, shuffle, min_seconds=0.5)
