"""How near a wave is to the one that it was made of."""

import importlib
import warnings
from typing import Any, NamedTuple

import librosa
import numpy as np
import soxr
import torch
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

PESQ_RATE = 16_000  # of its wideband mode
N_FFT, HOP, MELS = 1024, 256, 100  # of the mel distance: as WavTokenizer's own loss
FLOOR = 1e-5  # of a magnitude whose logarithm is taken
SILENT = 1e-6  # of the peak


class Similarity(NamedTuple):
    """None where a figure means nothing, as in silence, or its library is not installed."""

    si_sdr_db: float | None
    stoi: float | None  # 0 to 1
    pesq: float | None  # wideband, 1 to 4.6
    mel_distance: float  # nepers


def similarity(estimate: np.ndarray, reference: np.ndarray, rate: int) -> Similarity:
    """(samples,) and (samples,) at `rate`, Hz; errors as `mel_distance`."""
    distance = mel_distance(estimate, reference, rate)
    if min(np.abs(estimate).max(initial=0), np.abs(reference).max(initial=0)) < SILENT:
        return Similarity(None, None, None, distance)
    given = (estimate, reference, rate)
    return Similarity(si_sdr_db(estimate, reference), stoi(*given), pesq(*given), distance)


def si_sdr_db(estimate: np.ndarray, reference: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio (Le Roux et al. 2019), dB, without taking means away."""
    ours, theirs = (torch.from_numpy(np.array(wave, np.float64)) for wave in (estimate, reference))
    return float(scale_invariant_signal_distortion_ratio(ours, theirs))


def stoi(estimate: np.ndarray, reference: np.ndarray, rate: int) -> float | None:
    """Short-time objective intelligibility (Taal et al. 2011); None without pystoi or 0.4 s that are not silent."""
    library = _library("pystoi")
    if library is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            found = float(library.stoi(reference, estimate, rate))
        except (RuntimeWarning, ValueError):  # too short
            return None
    return found if np.isfinite(found) else None


def pesq(estimate: np.ndarray, reference: np.ndarray, rate: int) -> float | None:
    """Perceptual evaluation of speech quality (ITU-T P.862.2), wideband; None without pesq or where it hears nobody."""
    library = _library("pesq")
    if library is None:
        return None
    waves = [soxr.resample(wave, rate, PESQ_RATE) for wave in (reference, estimate)]
    found = float(library.pesq(PESQ_RATE, *waves, "wb", on_error=library.PesqError.RETURN_VALUES))
    return found if found > 0 else None  # -1 is its word for an error


def mel_distance(estimate: np.ndarray, reference: np.ndarray, rate: int) -> float:
    """Mean absolute difference of the log-mel magnitudes.

    Raises:
        ValueError: the waves are not of one length, or hold no samples.
    """
    if estimate.shape != reference.shape or not estimate.size:
        raise ValueError(f"two waves of one length are compared, got {estimate.shape} and {reference.shape}")
    filters = torch.from_numpy(librosa.filters.mel(sr=rate, n_fft=N_FFT, n_mels=MELS, htk=True, norm=None))
    waves = torch.from_numpy(np.stack([estimate, reference]).astype(np.float32))
    padded = torch.nn.functional.pad(waves, (N_FFT // 2, N_FFT // 2))
    spectrum = torch.stft(padded, N_FFT, HOP, window=torch.hann_window(N_FFT), center=False, return_complex=True)
    ours, theirs = (filters @ spectrum.abs()).clamp(min=FLOOR).log()
    return float((ours - theirs).abs().mean())


def _library(name: str) -> Any | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
