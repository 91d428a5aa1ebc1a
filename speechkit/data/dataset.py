"""Utterances as a map-style dataset whose items depend on (seed, epoch, index) alone."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from torch.utils.data import Dataset

from speechkit.data.collate import Bad, Item
from speechkit.data.concatenation import Row
from speechkit.data.utterance import Utterance
from speechkit.errors import InputError

log = logging.getLogger(__name__)

Key = tuple[int, int]  # epoch, index: the epoch travels with the index, for a worker outlives epochs
Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]

_SUBSTITUTES = 20


class SpeechDataset(Dataset[Item | Bad]):
    """Loads, augments and tokenises.

    Args:
        utterances: what there is.
        rate: sample rate of the waves, Hz.
        encode: text -> token ids; None gives no tokens.
        transform: (wave (samples,), generator) -> wave. The generator is seeded by (seed, epoch, index), so that
            neither the number of workers nor a resumed run changes what it draws.
        seed: of the transform.
        rows: indices of the utterances that each item concatenates, see `concatenation.rows`; None is each alone.
        substitute: a batch of which nothing can be loaded is filled with another utterance instead of being empty
            (in training a batch that vanishes would shift all later ones).
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        rate: int = 16_000,
        encode: Callable[[str], list[int]] | None = None,
        transform: Transform | None = None,
        seed: int = 0,
        substitute: bool = False,
        rows: Sequence[Row] | None = None,
    ) -> None:
        self.utterances, self.rate, self.encode, self.transform = list(utterances), rate, encode, transform
        self.seed, self.substitute = seed, substitute
        self.rows = [(index,) for index in range(len(self.utterances))] if rows is None else list(rows)
        self._cache: np.ndarray | None = None  # (all samples,) int16
        self._borders: dict[int, tuple[int, int]] = {}  # of utterances in the cache
        self._kept_as: list[int] = []  # of each utterance, the one whose audio is its own too
        self._reasons: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def seconds(self) -> list[float]:
        """Duration of each item, without the transform."""
        return [sum(self.utterances[index].seconds for index in row) for row in self.rows]

    def __getitem__(self, key: Key) -> Item | Bad:
        """Never raises for what is wrong with a file or a text: that comes back as `Bad`."""
        epoch, index = key
        parts = [self.utterances[part] for part in self.rows[index]]
        waves = []
        for part, utterance in zip(self.rows[index], parts, strict=True):
            try:
                waves.append(self._wave(part))
            except InputError as error:
                return Bad(utterance.id, str(error))
        name, text = "+".join(utterance.id for utterance in parts), " ".join(utterance.text for utterance in parts)
        try:
            wave = np.concatenate(waves)
            if self.transform is not None:
                wave = self.transform(wave, np.random.default_rng((self.seed, epoch, index)))
            return Item(wave, [] if self.encode is None else self.encode(text), name, text)
        except InputError as error:
            return Bad(name, str(error))

    def __getitems__(self, keys: Sequence[Key]) -> list[Item | Bad]:
        """What a loader calls: the items of one batch."""
        items = [self[key] for key in keys]
        if self.substitute and all(isinstance(item, Bad) for item in items):
            epoch, index = keys[-1]
            for step in range(1, _SUBSTITUTES + 1):
                items.append(self[epoch, (index + step) % len(self)])
                if isinstance(items[-1], Item):
                    break
        return items

    def preload(self, threads: int = 8) -> None:
        """Decode everything into memory (16 bits a sample), which workers that are forked later share.

        What is listed several times, to be heard more often, is decoded and kept once.
        """
        recordings = [(utterance.path, utterance.start, utterance.seconds) for utterance in self.utterances]
        chosen = dict(zip(recordings, range(len(recordings)), strict=True))
        with ThreadPoolExecutor(threads) as pool:
            waves = list(pool.map(self._decoded, chosen.values()))
        ends = np.cumsum([len(wave) for wave in waves]).tolist()
        self._borders = dict(zip(chosen.values(), zip([0, *ends[:-1]], ends, strict=True), strict=True))
        self._kept_as = [chosen[recording] for recording in recordings]
        self._cache = np.concatenate([np.zeros(0, np.int16), *waves])
        log.info("cached %.2f h of audio in %.0f MB", len(self._cache) / self.rate / 3600, self._cache.nbytes / 1e6)

    def _decoded(self, index: int) -> np.ndarray:
        try:
            wave = self.utterances[index].wave(self.rate)
        except InputError as error:
            self._reasons[index] = str(error)
            return np.zeros(0, np.int16)
        return np.clip(np.round(wave * 2.0**15), -(2**15), 2**15 - 1).astype(np.int16)

    def _wave(self, index: int) -> np.ndarray:
        if self._cache is None:
            return self.utterances[index].wave(self.rate)
        index = self._kept_as[index]
        if index in self._reasons:
            raise InputError(self._reasons[index])
        begin, end = self._borders[index]
        return self._cache[begin:end].astype(np.float32) / 2**15
