"""Figures of how near two waves are: what is known of them, and where they mean nothing."""

import sys
import types
from typing import Any

import numpy as np
import pytest

from speechkit.metrics.audio import mel_distance, pesq, si_sdr_db, similarity, stoi
from tests.asr.tiny import babble

RATE = 16_000


@pytest.fixture
def wave() -> np.ndarray:
    return babble(2, RATE)


def noisy(wave: np.ndarray, snr_db: float) -> np.ndarray:
    """With noise that is orthogonal to it."""
    noise = np.random.default_rng(0).standard_normal(len(wave))
    noise -= wave * (noise @ wave) / (wave @ wave)
    return (wave + noise * np.sqrt((wave @ wave) / (noise @ noise)) * 10 ** (-snr_db / 20)).astype(np.float32)


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 20.0])
def test_si_sdr_is_the_ratio_whatever_the_scale(wave: np.ndarray, snr_db: float) -> None:
    for scale in (0.1, 1, 3):
        assert si_sdr_db(scale * noisy(wave, snr_db), wave) == pytest.approx(snr_db, abs=1e-3)


def test_figures_order_what_is_nearer(wave: np.ndarray) -> None:
    best, good, bad = (similarity(noisy(wave, snr), wave, RATE) for snr in (60, 20, 0))
    assert best.mel_distance < good.mel_distance < bad.mel_distance
    pytest.importorskip("pystoi")
    assert best.stoi is not None
    assert good.stoi is not None
    assert bad.stoi is not None
    assert 0.99 < best.stoi <= 1.0001
    assert bad.stoi < good.stoi < best.stoi


def test_the_mel_distance_of_a_gain_is_its_logarithm(wave: np.ndarray) -> None:
    loud = wave + np.random.default_rng(0).standard_normal(len(wave)) * 0.1  # nothing of it is under the floor
    assert mel_distance(loud / 2, loud, RATE) == pytest.approx(np.log(2), abs=1e-4)
    assert mel_distance(wave, wave, RATE) == 0
    assert mel_distance(wave[:1], wave[:1], RATE) == 0
    for other in (wave[1:], wave[:0]):
        with pytest.raises(ValueError, match="two waves of one length are compared"):
            mel_distance(other, wave if len(other) else other, RATE)


def test_silence_and_short_sounds_have_no_intelligibility(wave: np.ndarray) -> None:
    silent = np.zeros_like(wave)
    for pair in ((silent, wave), (wave, silent), (silent, silent)):
        assert similarity(*pair, RATE)[:3] == (None, None, None)
    assert stoi(wave[:800], wave[:800], RATE) is None


def test_without_its_library_a_figure_is_left_out(wave: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pesq", "pystoi"):
        monkeypatch.setitem(sys.modules, name, None)
    assert similarity(noisy(wave, 20), wave, RATE)[1:3] == (None, None)


def test_pesq_gets_wideband_speech_and_its_errors_are_no_scores(
    wave: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def measured(rate: int, reference: np.ndarray, degraded: np.ndarray, mode: str, on_error: int) -> float:
        seen.append((rate, len(reference), len(degraded), mode, on_error))
        return 3.5 if len(seen) == 1 else -1

    library = types.ModuleType("pesq")
    library.pesq = measured  # type: ignore[attr-defined]
    library.PesqError = types.SimpleNamespace(RETURN_VALUES=1)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pesq", library)
    assert pesq(wave, wave, 2 * RATE) == 3.5
    assert pesq(wave, wave, 2 * RATE) is None
    assert seen[0] == (16_000, RATE, RATE, "wb", 1)
