"""Changes to waveforms and features: what they change, what they leave, and that they can be repeated."""

from pathlib import Path

import numpy as np
import pytest
import torch

from speechkit import audio
from speechkit.data.augment import Augmenter, NoiseMixer, Reverb, change_speed
from speechkit.data.noise import KINDS, make_babble, make_noise, mix, rms
from speechkit.errors import InputError
from speechkit.nn.specaugment import SpecAugment


def speech(samples: int = 16000, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (0.1 * np.sin(np.arange(samples) * 0.3) * rng.uniform(0.5, 1, samples)).astype(np.float32)


def snr_of(clean: np.ndarray, mixed: np.ndarray) -> float:
    return float(20 * np.log10(rms(clean) / rms(mixed - clean)))


@pytest.mark.parametrize("kind", KINDS)
def test_noise_has_unit_power_and_its_own_colour(kind: str) -> None:
    noise = make_noise(kind, 30011, np.random.default_rng(0))
    assert noise.shape == (30011,)
    assert noise.dtype == np.float32
    assert rms(noise) == pytest.approx(1, abs=1e-3)
    power = np.abs(np.fft.rfft(noise)) ** 2
    hz = np.fft.rfftfreq(30011, 1 / 16000)
    octaves_db = 10 * np.log10(power[(hz > 2000) & (hz < 4000)].sum() / power[(hz > 500) & (hz < 1000)].sum())
    if kind == "hum":
        assert power[hz < 600].sum() > 0.99 * power.sum()
    else:  # with each octave the power of white noise doubles, of pink stays, of brown halves
        assert octaves_db == pytest.approx({"white": 6, "pink": 0, "brown": -6}[kind], abs=0.7)


def test_unknown_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="noise must be one of"):
        make_noise("blue", 10, np.random.default_rng(0))


def test_mixing_meets_the_ratio_and_leaves_silence() -> None:
    clean = speech()
    for snr_db in (-5, 0, 20):
        noise = make_babble([speech(5000, 1), speech(20000, 2)], len(clean), np.random.default_rng(0))
        assert snr_of(clean, mix(clean, noise, snr_db)) == pytest.approx(snr_db, abs=0.01)
    silence = np.zeros(100, np.float32)
    np.testing.assert_array_equal(mix(silence, noise[:100], 10), silence)


def test_noise_comes_from_the_folder(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    tone = np.sin(2 * np.pi * 3000 / 8000 * np.arange(80000)).astype(np.float32) * 0.5
    audio.write(tmp_path / "deep" / "long.wav", tone, 8000)
    audio.write(tmp_path / "short.flac", tone[:400], 8000)
    mixer, clean = NoiseMixer(tmp_path, snr_db=(10, 10)), speech()
    for seed in range(6):
        mixed = mixer(clean, np.random.default_rng(seed))
        assert mixed.shape == clean.shape
        assert snr_of(clean, mixed) == pytest.approx(10, abs=0.01)
        spectrum = np.abs(np.fft.rfft(mixed - clean))
        assert abs(int(spectrum.argmax()) - 3000) < 30


def test_a_folder_without_noise_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no noise"):
        NoiseMixer(tmp_path)
    with pytest.raises(InputError, match="there is no noise"):
        NoiseMixer(tmp_path / "missing")
    with pytest.raises(ValueError, match="snr_db must be"):
        NoiseMixer(snr_db=(20, 5))


def test_reverb_keeps_length_level_and_start() -> None:
    reverb, wave = Reverb(rooms=3, t60_s=(0.3, 0.4)), np.zeros(16000, np.float32)
    wave[4000] = 1
    wet = reverb(wave, np.random.default_rng(0))
    assert wet.shape == wave.shape
    assert wet.dtype == np.float32
    assert rms(wet) == pytest.approx(rms(wave), rel=1e-4)
    assert int(np.abs(wet).argmax()) == 4000
    assert np.abs(wet[:3990]).max() < 0.01
    assert rms(wet[4200:6000]) > 10 * rms(wet[12000:])


def test_rooms_depend_on_the_seed_alone() -> None:
    one, two, other = Reverb(rooms=4, seed=1), Reverb(rooms=4, seed=1), Reverb(rooms=4, seed=2)
    one.response(3)
    np.testing.assert_array_equal(one.response(2), two.response(2))
    assert len(one.response(2)) != len(other.response(2))


@pytest.mark.parametrize("speed", [0.9, 1.1])
def test_speed_changes_length_and_pitch(speed: float) -> None:
    tone = np.sin(2 * np.pi * 1000 / 16000 * np.arange(16000)).astype(np.float32)
    changed = change_speed(tone, speed)
    assert len(changed) == pytest.approx(16000 / speed, abs=1)
    peak = np.abs(np.fft.rfft(changed)).argmax() * 16000 / len(changed)
    assert peak == pytest.approx(1000 * speed, abs=2)
    assert change_speed(tone, 1.0) is tone


def test_the_same_generator_gives_the_same_wave() -> None:
    augmenter = Augmenter(noise=NoiseMixer(), reverb=Reverb(rooms=2), reverb_probability=0.5)
    results = [[augmenter(speech(), np.random.default_rng(seed)) for seed in range(8)] for _ in range(2)]
    for first, second in zip(*results, strict=True):
        np.testing.assert_array_equal(first, second)
        assert first.dtype == np.float32
        assert np.abs(first).max() <= 1
    assert len({len(wave) for wave in results[0]}) > 1
    assert not np.array_equal(results[0][0], speech())


def test_probability_zero_changes_nothing() -> None:
    augmenter = Augmenter(
        noise=NoiseMixer(),
        reverb=Reverb(rooms=1),
        speed_probability=0,
        noise_probability=0,
        reverb_probability=0,
        gain_probability=0,
    )
    wave = speech()
    np.testing.assert_array_equal(augmenter(wave, np.random.default_rng(0)), wave)
    assert len(augmenter(wave[:0], np.random.default_rng(0))) == 0


def test_a_great_gain_does_not_clip() -> None:
    loud = Augmenter(speeds=(1.0,), gain_db=(40, 40))(speech(), np.random.default_rng(0))
    assert np.abs(loud).max() == pytest.approx(1)
    np.testing.assert_allclose(loud / np.abs(loud).max(), speech() / np.abs(speech()).max(), atol=1e-6)


def test_masks_are_whole_spans_within_their_widths() -> None:
    lengths = torch.tensor([100, 40, 10])
    mel = torch.ones(3, 100, 80)
    masking = SpecAugment(generator=torch.Generator().manual_seed(0))
    widest_time, widest_band = [0, 0, 0], 0
    for _ in range(100):
        masked = masking(mel, lengths)
        assert set(masked.unique().tolist()) <= {0.0, 1.0}
        rows, columns = masked.amax(dim=2) == 0, masked.amax(dim=1) == 0
        torch.testing.assert_close(masked == 0, rows[:, :, None] | columns[:, None, :])
        for row, length in enumerate(lengths.tolist()):
            assert not rows[row, length:].any()
            widest_time[row] = max(widest_time[row], int(rows[row].sum()))
        widest_band = max(widest_band, int(columns.sum(dim=1).max()))
    # Ten spans of at most 4 (below 5) and 1 (below 2) frames, none in an utterance of 10; two of at most 26 bands.
    assert 15 < widest_time[0] <= 40
    assert 3 < widest_time[1] <= 10
    assert widest_time[2] == 0
    assert 30 < widest_band <= 52


def test_rows_get_masks_of_their_own() -> None:
    masked = SpecAugment(generator=torch.Generator().manual_seed(1))(torch.ones(2, 200, 80), torch.tensor([200, 200]))
    assert not torch.equal(masked[0], masked[1])


def test_evaluation_is_not_masked() -> None:
    mel = torch.randn(2, 50, 80)
    assert SpecAugment().eval()(mel, torch.tensor([50, 20])) is mel


def test_masks_repeat_with_the_seed_and_pass_gradients() -> None:
    mel, lengths = torch.randn(2, 60, 80, requires_grad=True), torch.tensor([60, 30])
    torch.manual_seed(3)
    first = SpecAugment()(mel, lengths)
    torch.manual_seed(3)
    torch.testing.assert_close(SpecAugment()(mel, lengths), first)
    first.sum().backward()
    assert mel.grad is not None
    torch.testing.assert_close(mel.grad == 0, first == 0)
