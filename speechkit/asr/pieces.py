"""What a recogniser hears: files, samples and pieces of them, as checked pieces at the recogniser's rate."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from speechkit import audio

Audio = str | Path | np.ndarray | Tensor | Iterator[np.ndarray]


class Pieces:
    """Pieces (samples,) float32 at `rate` of whatever carries sound.

    Args:
        source: a file, samples in [-1, 1], or an iterator of pieces of them such as `audio.blocks`.
        rate: of the pieces, Hz.
        source_rate: of the samples that are given, Hz; `rate` where it is None. A file knows its own.

    Attributes:
        samples: how many have passed.
    """

    def __init__(self, source: Audio, rate: int, source_rate: int | None = None) -> None:
        self.rate, self.samples = rate, 0
        self._pieces = self._opened(source, rate if source_rate is None else source_rate)

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        piece = next(self._pieces)
        self.samples += len(piece)
        return piece

    def _opened(self, source: Audio, rate: int) -> Iterator[np.ndarray]:
        if isinstance(source, str | Path):
            yield from audio.blocks(source, self.rate)
        elif isinstance(source, np.ndarray | Tensor):
            wave = audio.prepare(_array(source), rate, self.rate)
            yield from (wave[begin : begin + self.rate] for begin in range(0, len(wave), self.rate))
        else:
            resampler = audio.StreamResampler(rate, self.rate)
            for piece in source:
                yield resampler.push(audio.checked(piece))
            yield resampler.flush()


def _array(samples: np.ndarray | Tensor) -> np.ndarray:
    """Samples as NumPy has them, which knows no bfloat16."""
    if not isinstance(samples, Tensor):
        return samples
    samples = samples.detach().cpu()
    return (samples.float() if samples.dtype == torch.bfloat16 else samples).numpy()
