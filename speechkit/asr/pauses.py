"""Recordings cut at their quietest places, for models that need a whole utterance."""

from collections.abc import Iterable, Iterator

import numpy as np

QUIET_S = 0.2  # length of the place that is looked for
SEARCHED = 1 / 3  # of a window, at its end


def windows(pieces: Iterable[np.ndarray], rate: int, longest_s: float, grid: int = 1) -> Iterator[np.ndarray]:
    """Pieces (samples,) at `rate` -> windows of at most `longest_s`, which together are the recording.

    A window ends in the middle of the quietest 0.2 s of its last third, on a multiple of `grid` samples.
    """
    longest = max(grid, round(longest_s * rate) // grid * grid)
    waiting = np.zeros(0, np.float32)
    for piece in pieces:
        waiting = np.concatenate([waiting, piece])
        while len(waiting) > longest:
            cut = _quietest(waiting[:longest], round(QUIET_S * rate), grid)
            yield waiting[:cut]
            waiting = waiting[cut:]
    if len(waiting):
        yield waiting


def _quietest(window: np.ndarray, width: int, grid: int) -> int:
    """The middle of the quietest `width` samples in the last part of a window, rounded down to the grid."""
    begin = round(len(window) * (1 - SEARCHED))
    energy = np.cumsum(np.square(window[begin:], dtype=np.float64))
    if len(energy) <= width:
        return len(window)
    middle = begin + int(np.argmin(energy[width:] - energy[:-width])) + width // 2
    return max(grid, middle // grid * grid)
