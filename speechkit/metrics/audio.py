"""How near a wave is to the one that it was made of."""

import importlib
import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import soxr
import torch
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

from speechkit.metrics.pitch import pitch_error
from speechkit.metrics.spectrum import mcd_db, mel_distance

PESQ_RATE = 16_000  # of its wideband mode
SILENT = 1e-6  # of the peak


class Similarity(NamedTuple):
    """None where a figure means nothing, as in silence, or its library is not installed."""

    si_sdr_db: float | None
    stoi: float | None  # 0 to 1
    pesq: float | None  # wideband, 1 to 4.6
    mel_distance: float  # nepers
    mcd_db: float | None  # mel-cepstral distortion
    f0_rmse_hz: float | None  # of the pitch, where both have one
    f0_rmse_cents: float | None
    voicing_f1: float | None  # of which frames have a pitch, 0 to 1


def similarity(estimate: np.ndarray, reference: np.ndarray, rate: int) -> Similarity:
    """(samples,) and (samples,) at `rate`, Hz; errors as `mel_distance`."""
    given = (estimate, reference, rate)
    distance = mel_distance(*given)
    if np.abs(reference).max() < SILENT:
        return Similarity(None, None, None, distance, None, None, None, None)
    rest = (distance, mcd_db(*given), *pitch_error(*given))
    if np.abs(estimate).max() < SILENT:
        return Similarity(None, None, None, *rest)
    return Similarity(si_sdr_db(estimate, reference), stoi(*given), pesq(*given), *rest)


def mean(values: Sequence[tuple[float, float | None]]) -> float | None:
    """The mean by weights of what is there; None where nothing is."""
    there = [(weight, value) for weight, value in values if value is not None]
    return math.fsum(w * v for w, v in there) / math.fsum(w for w, _ in there) if there else None


def averaged(parts: Sequence[tuple[float, Similarity]]) -> dict[str, float | None]:
    """The mean of each figure by weights."""
    return {name: mean([(weight, getattr(one, name)) for weight, one in parts]) for name in Similarity._fields}


def si_sdr_db(estimate: np.ndarray, reference: np.ndarray) -> float | None:
    """Scale-invariant signal-to-distortion ratio (Le Roux et al. 2019), dB, without taking means away.

    None of a single sample: any number is a multiple of any other.
    """
    if len(reference) < 2:
        return None
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


def _library(name: str) -> Any | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
