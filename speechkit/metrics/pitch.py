"""The pitch of a voice, and how well another wave keeps it."""

from typing import Any, NamedTuple

import numpy as np
import soxr

from speechkit.imports import librosa

RATE = 16_000  # Hz, at which pitch is looked for
FRAME, HOP = 1024, 160  # samples there: 64 ms, every 10 ms
LOW_HZ, HIGH_HZ = 60.0, 500.0
STEP = 0.2  # semitones between the candidates
CENTS = 1200.0  # of an octave


class PitchError(NamedTuple):
    """None where a figure means nothing: without frames that are voiced in both, or in either."""

    rmse_hz: float | None  # over frames that are voiced in both
    rmse_cents: float | None  # the same, of the ratio
    voicing_f1: float | None  # of the frames that are voiced, 0 to 1


def pitch_error(estimate: np.ndarray, reference: np.ndarray, rate: int) -> PitchError:
    """(samples,) and (samples,) of one length at `rate`, Hz."""
    ours, theirs = pitch_hz(estimate, rate), pitch_hz(reference, rate)
    voiced = [np.isfinite(pitch) for pitch in (ours, theirs)]
    both = voiced[0] & voiced[1]
    total = voiced[0].sum() + voiced[1].sum()
    f1 = float(2 * both.sum() / total) if total else None
    if not both.any():
        return PitchError(None, None, f1)
    return PitchError(_rms(ours[both] - theirs[both]), _rms(CENTS * np.log2(ours[both] / theirs[both])), f1)


def pitch_hz(wave: np.ndarray, rate: int) -> np.ndarray:
    """(samples,) at `rate`, Hz -> (frames,), NaN where there is no voice.

    Which candidate it is, and whether there is a voice at all, says probabilistic YIN (Mauch and Dixon 2014); where
    YIN (de Cheveigné and Kawahara 2002) finds it too, its value, which is interpolated, is taken.
    """
    wave = soxr.resample(wave, rate, RATE)
    if not len(wave):
        return np.zeros(0)
    given: dict[str, Any] = {"fmin": LOW_HZ, "fmax": HIGH_HZ, "sr": RATE, "frame_length": FRAME, "hop_length": HOP}
    pitch = librosa("core.pitch")
    coarse, _, _ = pitch.pyin(wave, resolution=STEP, **given)
    fine = pitch.yin(wave, **given)
    return np.where(np.abs(np.log2(fine / coarse)) < STEP / 12, fine, coarse)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values).mean()))
