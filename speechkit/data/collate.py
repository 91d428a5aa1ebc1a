"""Utterances of different lengths become one batch."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

PAD = 0  # in tokens; token_lengths say what counts, so that it may be the id of a real piece


class Item(NamedTuple):
    """One utterance, loaded."""

    wave: np.ndarray  # (samples,) float32
    tokens: list[int]
    id: str
    text: str


class Bad(NamedTuple):
    """One utterance that could not be loaded, and the sentence that says why."""

    id: str
    reason: str


class Batch(NamedTuple):
    """Padded utterances; `bad` are those that should have been in it."""

    wave: Tensor  # (batch, samples) float32, zeros after each end
    wave_lengths: Tensor  # (batch,) int64 samples
    tokens: Tensor  # (batch, U) int64, `PAD` after each end
    token_lengths: Tensor  # (batch,) int64
    ids: list[str]
    texts: list[str]
    bad: list[Bad]


def collate(items: Sequence[Item | Bad]) -> Batch:
    """Pad what was loaded -> a batch, of 0 rows where nothing was."""
    good = [item for item in items if isinstance(item, Item)]
    wave = np.zeros((len(good), max((len(item.wave) for item in good), default=0)), np.float32)
    tokens = np.full((len(good), max((len(item.tokens) for item in good), default=0)), PAD, np.int64)
    for row, item in enumerate(good):
        wave[row, : len(item.wave)] = item.wave
        tokens[row, : len(item.tokens)] = item.tokens
    return Batch(
        torch.from_numpy(wave),
        torch.tensor([len(item.wave) for item in good], dtype=torch.int64),
        torch.from_numpy(tokens),
        torch.tensor([len(item.tokens) for item in good], dtype=torch.int64),
        [item.id for item in good],
        [item.text for item in good],
        [item for item in items if isinstance(item, Bad)],
    )
