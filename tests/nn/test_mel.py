"""Filter banks are librosa's."""

import librosa
import numpy as np
import pytest

from speechkit.nn.mel import mel_bank

SIZES = [(16_000, 512, 80), (16_000, 400, 128), (24_000, 1024, 100), (1000, 32, 8)]


@pytest.mark.parametrize("htk", [False, True])
@pytest.mark.parametrize("area", [False, True])
@pytest.mark.parametrize(("rate", "n_fft", "n_mels"), SIZES)
def test_the_numbers_are_those_of_librosa(rate: int, n_fft: int, n_mels: int, htk: bool, area: bool) -> None:
    expected = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=n_mels, htk=htk, norm="slaney" if area else None)
    found = mel_bank(rate, n_fft, n_mels, htk, area).numpy().T
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=3e-7, atol=3e-7 * expected.max())
