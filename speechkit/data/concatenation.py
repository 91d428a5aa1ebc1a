"""Utterance concatenation: what follows each other in a corpus as one longer utterance."""

from collections.abc import Sequence

import numpy as np

from speechkit.data.utterance import Utterance
from speechkit.errors import InputError

Row = tuple[int, ...]  # utterances, by their index, that are loaded as one


def rows(utterances: Sequence[Utterance], most: int = 1, max_seconds: float = float("inf"), seed: int = 0) -> list[Row]:
    """Every utterance alone and, where `most` is above 1, once more in a row of utterances that follow each other.

    A transducer that was trained on single sentences alone is silent after the first sentence of a longer recording,
    for its predictor never saw one go on. A row is of one speaker, as far as speakers are known, and nothing is put
    between its utterances: in silence of our own making, or a change of voice, a model would learn to hear the border
    (random partners: Lin et al. 2023, "Random Utterance Concatenation Based Data Augmentation for Improving
    Short-video Speech Recognition").

    Args:
        most: utterances in a row at most; how many of 2 to `most` is drawn for each row.
        max_seconds: of a row of several utterances.

    Raises:
        InputError: `most` is below 1.
    """
    if most < 1:
        raise InputError(f"utterances in a row must be at least 1, got {most}")
    alone: list[Row] = [(index,) for index in range(len(utterances))]
    if most == 1:
        return alone
    rng = np.random.default_rng((seed, most))
    found: list[Row] = []
    row: Row = ()
    wanted, seconds = 0, 0.0
    for index, utterance in enumerate(utterances):
        fits = seconds + utterance.seconds <= max_seconds and len(row) < wanted
        if not row or not fits or utterance.speaker != utterances[row[0]].speaker:
            found.append(row)
            row, wanted, seconds = (), int(rng.integers(2, most + 1)), 0.0
        row, seconds = (*row, index), seconds + utterance.seconds
    return alone + [row for row in [*found, row] if len(row) > 1]
