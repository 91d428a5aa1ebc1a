"""Kaldi's features are Kaldi's, whole and chunk by chunk, at a low frame rate too."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchaudio.compliance import kaldi

from speechkit.fbank import KaldiFbank
from speechkit.low_frame_rate import LowFrameRate
from speechkit.streaming.chain import Chain
from tests.streaming.contract import CHECKS, Case

RATE = 1000
LENGTHS = [0, 10, 24, 25, 26, 35, 100, 431]


def small() -> tuple[KaldiFbank, LowFrameRate]:
    fbank, joined = KaldiFbank(RATE, n_mels=4).double(), LowFrameRate(4).double()
    torch.manual_seed(0)
    torch.nn.init.normal_(joined.shift)
    torch.nn.init.uniform_(joined.scale, 0.5, 2.0)
    return fbank, joined


def test_they_are_those_of_kaldi() -> None:
    torch.manual_seed(1)
    wave = 0.1 * torch.randn(2, 8000) + 0.02
    found, counts = KaldiFbank()(wave, torch.tensor([8000, 4321]))
    assert counts.tolist() == [48, 25]
    for row, length in enumerate([8000, 4321]):
        expected = kaldi.fbank(
            32768 * wave[row : row + 1, :length], num_mel_bins=80, window_type="hamming", dither=0.0, energy_floor=0.0
        )
        torch.testing.assert_close(found[row, : counts[row]], expected, atol=1e-4, rtol=0)
        assert not found[row, counts[row] :].any()


@pytest.mark.parametrize("frames", range(20))
def test_frames_are_joined_around_every_sixth(frames: int) -> None:
    x = torch.randn(1, frames, 2)
    found, counts = LowFrameRate(2)(torch.cat([x, torch.randn(1, 5, 2)], dim=1), torch.tensor([frames]))
    assert counts.tolist() == [(frames + 5) // 6]
    for i in range(int(counts)):
        places = (torch.arange(6 * i - 3, 6 * i + 4)).clamp(0, frames - 1)
        torch.testing.assert_close(found[0, i], x[0, places].flatten())
    assert not found[0, int(counts) :].any()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("joined", [False, True])
def test_chunks_are_the_whole(check: Callable[[Case], None], joined: bool) -> None:
    fbank, rate = small()

    def forward(x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        features = fbank(x[..., 0], lengths)
        return rate(*features) if joined else features

    module = Chain(fbank, rate) if joined else fbank
    check(Case(module, forward, dim=1, longest=600, tolerance=1e-6))


def test_noise_is_added_in_training_alone() -> None:
    fbank, wave = KaldiFbank(dither=1.0), torch.randn(1, 800)
    lengths = torch.tensor([800])
    assert torch.equal(fbank.eval()(wave, lengths)[0], fbank(wave, lengths)[0])
    assert not torch.equal(fbank.train()(wave, lengths)[0], fbank(wave, lengths)[0])


@pytest.mark.parametrize("options", [{"n_mels": 0}, {"window_ms": 5.0}, {"stride_ms": 0.0}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="frames must be as long as their stride"):
        KaldiFbank(**options)  # type: ignore[arg-type]
