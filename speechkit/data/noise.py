"""Noise without recordings (white, pink, brown, mains hum, babble) and its mixing at a signal-to-noise ratio."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Wave = NDArray[np.float32]  # (samples,)

_SLOPES = {"white": 0.0, "pink": 0.5, "brown": 1.0}  # amplitude falls as frequency ** -slope
KINDS = (*_SLOPES, "hum")


def make_noise(kind: str, samples: int, rng: np.random.Generator, sample_rate: int = 16000) -> Wave:
    """(samples,) of noise with an RMS of 1; `kind` is one of `KINDS`."""
    if kind == "hum":
        return _hum(samples, rng, sample_rate)
    if kind not in _SLOPES:
        raise ValueError(f"noise must be one of {', '.join(KINDS)}, got {kind!r}")
    noise = rng.standard_normal(samples, dtype=np.float32)
    if _SLOPES[kind]:
        bins = 1 << max(samples - 1, 1).bit_length()  # an odd length may be a prime, and slow
        frequency = np.fft.rfftfreq(bins, 1 / sample_rate)
        shape = np.maximum(frequency, 20) ** -_SLOPES[kind]  # flat below hearing, else all energy is there
        noise = np.fft.irfft(np.fft.rfft(noise, bins) * shape.astype(np.float32), bins)[:samples].astype(np.float32)
    return noise / np.float32(max(rms(noise), 1e-12))


def make_babble(voices: Sequence[Wave], samples: int, rng: np.random.Generator) -> Wave:
    """(samples,) of several voices at once, each from a place drawn and at its own level, with an RMS of 1."""
    babble = np.zeros(samples, np.float32)
    for voice in voices:
        level = rng.uniform(0.5, 1) / max(rms(voice), 1e-6)
        babble += np.float32(level) * np.resize(np.roll(voice, -int(rng.integers(len(voice)))), samples)
    return babble / np.float32(max(rms(babble), 1e-12))


def mix(wave: Wave, noise: Wave, snr_db: float) -> Wave:
    """Adds noise of the same length at a ratio of powers in dB; silence stays without noise, for it has no ratio."""
    level, noise_level = rms(wave), rms(noise)
    if level == 0 or noise_level == 0:
        return wave
    return wave + noise * np.float32(level / noise_level * 10 ** (-snr_db / 20))


def rms(wave: Wave) -> float:
    """Root of the mean square; 0 for nothing."""
    return float(np.sqrt(np.mean(np.square(wave, dtype=np.float64)))) if len(wave) else 0.0


def _hum(samples: int, rng: np.random.Generator, sample_rate: int) -> Wave:
    mains = rng.choice([50.0, 60.0]) * rng.uniform(0.99, 1.01)
    time = np.arange(samples) / sample_rate
    wave = np.zeros(samples)
    for harmonic in range(1, 9):
        wave += rng.uniform(0.2, 1) / harmonic * np.sin(2 * np.pi * (mains * harmonic * time + rng.uniform()))
    return (wave / max(rms(wave.astype(np.float32)), 1e-12)).astype(np.float32)
