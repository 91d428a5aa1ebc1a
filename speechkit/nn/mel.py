"""Mel filter banks."""

import math

import numpy as np
import torch
from torch import Tensor

BREAK_HZ, BREAK_MEL = 1000.0, 15.0  # where Slaney's scale turns from linear to logarithmic
STEP = math.log(6.4) / 27  # of a mel there


def mel_bank(rate: int, n_fft: int, n_mels: int, htk: bool = False, area: bool = True) -> Tensor:
    """Triangles from 0 Hz to half the rate: (n_fft // 2 + 1, n_mels), in single precision.

    The numbers are those of `librosa.filters.mel`, for which a second of imports is not worth waiting.

    Args:
        rate: Hz.
        n_fft: samples of the transform whose powers or magnitudes are summed.
        n_mels: channels.
        htk: whether the scale is HTK's (O'Shaughnessy 1987); else Slaney's (Auditory Toolbox, 1998).
        area: whether each triangle is divided by half its width in Hz, as Slaney does.
    """
    to_mel, to_hz = (_htk_mel, _htk_hz) if htk else (_slaney_mel, _slaney_hz)
    borders = to_hz(np.linspace(to_mel(0.0), to_mel(rate / 2), n_mels + 2))
    low, middle, high = (borders[i : i + n_mels, None] for i in range(3))
    frequencies = np.fft.rfftfreq(n_fft, 1 / rate)
    with np.errstate(divide="ignore", invalid="ignore"):
        rising, falling = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    bank = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    if area:
        bank = (bank * (2.0 / (high - low))).astype(np.float32)
    return torch.from_numpy(bank.T.copy())


def _htk_mel(hz: float) -> float:
    return 2595 * math.log10(1 + hz / 700)


def _htk_hz(mels: np.ndarray) -> np.ndarray:
    return 700 * (10 ** (mels / 2595) - 1)


def _slaney_mel(hz: float) -> float:
    return hz * BREAK_MEL / BREAK_HZ if hz < BREAK_HZ else BREAK_MEL + math.log(hz / BREAK_HZ) / STEP


def _slaney_hz(mels: np.ndarray) -> np.ndarray:
    return np.where(mels < BREAK_MEL, mels * BREAK_HZ / BREAK_MEL, BREAK_HZ * np.exp(STEP * (mels - BREAK_MEL)))
