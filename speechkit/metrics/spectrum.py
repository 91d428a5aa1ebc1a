"""How near the spectra of two waves are, on the mel scale: all of it, and its shape alone."""

import math

import numpy as np
import torch
from torch import Tensor

from speechkit.nn.mel import mel_bank

N_FFT, HOP, MELS = 1024, 256, 100  # as WavTokenizer's own loss
FLOOR = 1e-5  # of a magnitude whose logarithm is taken
ORDER = 13  # of the cepstra
DECIBELS = 20 / math.log(10)  # of a neper


def mel_distance(estimate: np.ndarray, reference: np.ndarray, rate: int) -> float:
    """Mean absolute difference of the log-mel magnitudes, nepers.

    Raises:
        ValueError: the waves are not of one length, or hold no samples.
    """
    ours, theirs = _log_mels(estimate, reference, rate)
    return float((ours - theirs).abs().mean())


def mcd_db(estimate: np.ndarray, reference: np.ndarray, rate: int) -> float:
    """Mel-cepstral distortion (Kubichek 1993), dB: the mean over frames, each beside the one of its own time.

    Of a frame it is ``10 / ln 10 * sqrt(2 * sum of (c - c')^2)`` over the coefficients 1 to 13, without 0, which is
    the level. Raises as `mel_distance`.
    """
    ours, theirs = (mel_cepstra(mels) for mels in _log_mels(estimate, reference, rate))
    return float(DECIBELS * ((ours - theirs).square().sum(0) / 2).sqrt().mean())


def mel_cepstra(mels: Tensor, order: int = ORDER) -> Tensor:
    """Log-mel magnitudes (bands, frames) -> (order, frames), ``c`` 1 to `order` of a cosine series over the bands.

    The magnitudes of band ``k`` of ``K`` are ``c_0 + sum of c_m cos(pi m (k + 1/2) / K)``, so that the distortion is
    the root mean square over the bands of what the series differ by.
    """
    place = (torch.arange(len(mels), dtype=mels.dtype) + 0.5) * torch.pi / len(mels)
    waves = torch.cos(place * torch.arange(1, order + 1, dtype=mels.dtype)[:, None])
    return 2 / len(mels) * waves @ mels


def _log_mels(estimate: np.ndarray, reference: np.ndarray, rate: int) -> Tensor:
    """(2, bands, frames)."""
    if estimate.shape != reference.shape or not estimate.size:
        raise ValueError(f"two waves of one length are compared, got {estimate.shape} and {reference.shape}")
    filters = mel_bank(rate, N_FFT, MELS, htk=True, area=False).T
    waves = torch.from_numpy(np.stack([estimate, reference]).astype(np.float32))
    padded = torch.nn.functional.pad(waves, (N_FFT // 2, N_FFT // 2))
    spectrum = torch.stft(padded, N_FFT, HOP, window=torch.hann_window(N_FFT), center=False, return_complex=True)
    return (filters @ spectrum.abs()).clamp(min=FLOOR).log()
