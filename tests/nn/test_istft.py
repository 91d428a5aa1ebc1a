"""The inverse transform: it gives signals back, and its ends are no louder than what lies between them."""

import pytest
import torch
from torch import Tensor

from speechkit.nn.istft import InverseStft
from speechkit.streaming.stream import Stream

HOP, OVERLAP = 320, 4


def halves(spectrum: Tensor) -> Tensor:
    """(frames, bins) complex -> (frames, 2 bins), real parts before imaginary ones."""
    return torch.cat([spectrum.real, spectrum.imag], dim=-1)


@pytest.mark.parametrize("lookahead", range(OVERLAP))
def test_the_ends_are_no_louder_than_one_frame_can_be(lookahead: int) -> None:
    """Of frames that do not fit together, as a network makes them; whole and as a stream."""
    module = InverseStft(OVERLAP * HOP, HOP, lookahead)
    frames = torch.rand(40, OVERLAP * HOP) * 2 - 1
    spectrum = halves(torch.fft.rfft(frames))
    whole = module(spectrum[None], torch.tensor([40]))[0][0]
    stream = Stream(module)
    pieces = torch.cat([*stream.push(spectrum), *stream.flush()])
    for hops in (whole, pieces):
        assert hops.shape == (40, HOP)
        assert 0.5 < hops[10:30].abs().max() < 2
        assert hops.abs().max() < 3


@pytest.mark.parametrize(("lookahead", "first", "last"), [(0, HOP, 0), (1, 0, 0), (2, 0, 0), (3, 0, HOP)])
def test_frames_of_a_signal_give_it_back(lookahead: int, first: int, last: int) -> None:
    """All of it; but for one hop, of which a single window's slope says too little to be raised in full."""
    module = InverseStft(OVERLAP * HOP, HOP, lookahead).double()
    count = 12
    wave = torch.randn(count * HOP, dtype=torch.double)
    padded = torch.nn.functional.pad(wave, (lookahead * HOP, (OVERLAP - 1 - lookahead) * HOP))
    spectrum = halves(torch.fft.rfft(padded.unfold(0, OVERLAP * HOP, HOP) * module.window))
    back = module(spectrum[None], torch.tensor([count]))[0].flatten()
    kept = slice(first, count * HOP - last)
    torch.testing.assert_close(back[kept], wave[kept])
    assert (back.abs() <= wave.abs() + 1e-12).all()
