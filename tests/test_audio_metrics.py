"""Figures of how near two waves are: what is known of them, and where they mean nothing."""

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from speechkit.errors import InputError
from speechkit.metrics import utmos
from speechkit.metrics.audio import Similarity, averaged, pesq, si_sdr_db, similarity, stoi
from speechkit.metrics.pitch import RATE as PITCH_RATE
from speechkit.metrics.pitch import pitch_error, pitch_hz
from speechkit.metrics.spectrum import DECIBELS, MELS, mcd_db, mel_cepstra, mel_distance
from tests.asr.tiny import babble

RATE = 16_000


@pytest.fixture
def wave() -> np.ndarray:
    return babble(2, RATE)


def tone(hz: float, seconds: float = 2.0, rate: int = RATE) -> np.ndarray:
    """A voice of ten partials."""
    time = np.arange(round(seconds * rate)) / rate
    partials = np.stack([np.sin(2 * np.pi * hz * k * time) / k for k in range(1, 11)])
    return (0.1 * partials.sum(axis=0)).astype(np.float32)


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
        assert (similarity(*pair, RATE).mcd_db is None) == (pair[1] is silent)
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


def test_nothing_is_lost_where_nothing_changes() -> None:
    wave = tone(220)
    found = similarity(wave, wave, RATE)
    assert found.mel_distance == found.mcd_db == found.f0_rmse_hz == found.f0_rmse_cents == 0
    assert found.voicing_f1 == 1
    assert found.si_sdr_db is not None
    assert np.isfinite(found.si_sdr_db)


def test_figures_of_parts_are_averaged_by_their_weights() -> None:
    parts = [
        Similarity(None, 0.5, None, 1.0, 2.0, None, 7.0, 1.0),
        Similarity(3.0, 1.0, None, 4.0, 2.0, None, None, 0.0),
    ]
    found = averaged([(1, parts[0]), (2, parts[1])])
    assert found == pytest.approx(
        {
            "si_sdr_db": 3.0, "stoi": 2.5 / 3, "pesq": None, "mel_distance": 3.0, "mcd_db": 2.0, "f0_rmse_hz": None,
            "f0_rmse_cents": 7.0, "voicing_f1": 1 / 3,
        }
    )  # fmt: skip


# Mel-cepstral distortion


def test_cepstra_are_the_coefficients_of_a_cosine_series() -> None:
    place = torch.pi * (torch.arange(MELS, dtype=torch.float64) + 0.5) / MELS
    wanted = torch.randn(13, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = torch.cos(torch.arange(1, 14)[:, None] * place).T @ wanted
    torch.testing.assert_close(mel_cepstra(rows - 4), wanted)  # the level is no part of them
    beyond = torch.cos(14 * place)[:, None]
    torch.testing.assert_close(mel_cepstra(beyond), torch.zeros(13, 1, dtype=torch.float64))
    apart = DECIBELS * rows.square().mean(0).sqrt()
    torch.testing.assert_close(apart, DECIBELS * (wanted.square().sum(0) / 2).sqrt())


def test_a_gain_is_no_cepstral_distortion_and_a_filter_is_one() -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(4 * RATE).astype(np.float32)
    assert mcd_db(noise / 3, noise, RATE) == pytest.approx(0, abs=1e-4)
    hz = np.fft.rfftfreq(len(noise), 1 / RATE)
    mel = np.log1p(hz / 700) / np.log1p(RATE / 2 / 700)
    for nepers, order in ((0.5, 1), (0.3, 2)):
        filtered = np.fft.irfft(np.fft.rfft(noise) * np.exp(nepers * np.cos(np.pi * order * mel)))
        assert mcd_db(filtered, noise, RATE) == pytest.approx(DECIBELS * nepers / np.sqrt(2), rel=0.03)


# Pitch


@pytest.mark.parametrize(("hz", "other"), [(100, 103.3), (120, 127.14), (200, 204), (231.7, 233), (400, 380)])
def test_a_shift_of_the_pitch_is_its_error(hz: float, other: float) -> None:
    found = pitch_error(tone(other, rate=24_000), tone(hz, rate=24_000), 24_000)
    assert found.rmse_hz == pytest.approx(abs(other - hz), abs=0.2)
    assert found.rmse_cents == pytest.approx(abs(1200 * np.log2(other / hz)), abs=1)
    assert found.voicing_f1 == 1


def test_voicing_is_judged_by_frames() -> None:
    whole = tone(150, 4)
    half = whole * (np.arange(len(whole)) < len(whole) / 2)
    heard, kept = (np.isfinite(pitch_hz(wave, RATE)).sum() for wave in (whole, half))
    assert kept / heard == pytest.approx(0.5, abs=0.03)
    for pair in ((half, whole), (whole, half)):
        found = pitch_error(*pair, RATE)
        assert found.voicing_f1 == pytest.approx(2 * kept / (heard + kept))
        assert found.rmse_cents == pytest.approx(0, abs=5)


def test_without_a_voice_there_is_no_pitch(wave: np.ndarray) -> None:
    silent = np.zeros(PITCH_RATE, np.float32)
    hiss = 0.1 * np.random.default_rng(0).standard_normal(PITCH_RATE).astype(np.float32)
    assert pitch_error(silent, silent, PITCH_RATE) == (None, None, None)
    assert pitch_error(silent, tone(200, 1), PITCH_RATE) == (None, None, 0)
    assert np.isfinite(pitch_hz(hiss, PITCH_RATE)).mean() < 0.1
    assert pitch_error(silent[:1], silent[:1], PITCH_RATE) == (None, None, None)


# UTMOS, by models that stand in for it


class Loudness(nn.Module):
    """Gives the rate in kHz and the peak, so that a test sees what it was given."""

    def forward(self, wave: Tensor, sr: int) -> Tensor:
        return wave.abs().amax(1) + sr / 1000


class Shape(nn.Module):
    def forward(self, wave: Tensor, sr: int) -> Tensor:
        return torch.ones(2)


def scripted(model: nn.Module, path: Path) -> Path:
    torch.jit.script(model).save(str(path))
    return path


def test_a_scripted_model_hears_16_khz(tmp_path: Path) -> None:
    model = utmos.load(str(scripted(Loudness(), tmp_path / "utmos.pt")))
    assert model(np.full(24_000, 0.5, np.float32), 24_000) == pytest.approx(16.5, abs=0.1)
    assert model(np.full(1000, 0.5, np.float32), 16_000) is None  # shorter than 0.1 s


def test_a_folder_of_torch_hub_gives_a_model(tmp_path: Path) -> None:
    (tmp_path / "hubconf.py").write_text("def utmos22_strong():\n    return lambda wave, sr: wave.sum(1) * 0 + 4.05\n")
    assert utmos.load(str(tmp_path))(np.ones(16_000, np.float32), 16_000) == pytest.approx(4.05)


def test_what_is_no_such_model_is_said_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.pt").write_text("no archive")
    for name, sentence in (
        (tmp_path / "text.pt", "text.pt gives no UTMOS model"),
        (tmp_path, "gives no UTMOS model"),
        ("nowhere", "there is no file or folder nowhere"),
    ):
        with pytest.raises(InputError, match=sentence):
            utmos.load(str(name))

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load", offline)
    with pytest.raises(InputError, match="utmos22_strong gives no UTMOS model: no network"):
        utmos.load("utmos22_strong")
    with pytest.raises(InputError, match="does not turn waves"):
        utmos.load(str(scripted(Shape(), tmp_path / "shape.pt")))
