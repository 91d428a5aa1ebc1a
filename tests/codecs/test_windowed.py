"""Windows of a decoder that hears everything at once: sizes, memory, and what is heard where two of them meet."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from speechkit.codecs.codebook import Codebook
from speechkit.codecs.codec import Codec
from speechkit.codecs.quantizers import VectorQuantizer
from speechkit.codecs.seanet import SeanetEncoder
from speechkit.codecs.vocos import VocosDecoder
from speechkit.codecs.wavtokenizer import WavTokenizer
from speechkit.codecs.windowed import BESIDE, Windowed
from speechkit.nn.window import Window
from tests.asr.tiny import babble
from tests.codecs import tiny
from tests.codecs.test_codec import pieces


@pytest.mark.parametrize("count", [0, 1, 3, 19, 20, 21, 22, 200])
def test_windows_give_a_hop_for_every_code(count: int) -> None:
    model = tiny.codec(rate=60)  # ten codes a second
    windows = Windowed(model, window_s=2, beside=5, fade_s=0.3)
    codes = torch.randint(16, (count,))
    found = torch.cat([torch.zeros(0), *windows.run(pieces(codes, 7))])
    assert len(found) == count * model.hop
    if 0 < count <= windows.size:
        torch.testing.assert_close(found, Codec(model).decode(codes)[0])


def test_windows_hold_no_more_than_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    model, longest = tiny.codec(rate=60), 0
    plain = model.decode

    def decode(codes: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal longest
        longest = max(longest, codes.shape[1])
        return plain(codes, lengths)

    monkeypatch.setattr(model, "decode", decode)
    windows = Windowed(model, window_s=2, beside=5, fade_s=0.3)
    for _ in windows.run([torch.randint(16, (3,)) for _ in range(400)]):
        pass
    assert longest == windows.size == 20


def test_where_windows_meet_there_is_no_click() -> None:
    """Neighbouring samples are as near there as elsewhere, of a smooth decoder that says something else each time."""
    model = tiny.codec(rate=60)
    windows = Windowed(model, window_s=2, beside=5, fade_s=0.3)
    offset = [0.0]

    def decode(codes: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        offset[0] += 1.0  # each window is its own constant: cut hard, there would be a step of 1
        return torch.full((1, codes.shape[1] * model.hop), offset[0]), lengths * model.hop

    model.decode = decode  # type: ignore[method-assign]
    wave = torch.cat(list(windows.run([torch.zeros(200, dtype=torch.int64)])))
    assert wave.diff().abs().max() <= 1.01 / (windows.fade * model.hop)


RATE, HOP = 16_000, 200


@torch.no_grad()
def spoken(seconds: float) -> tuple[WavTokenizer, Tensor]:
    """A narrow decoder with as many layers as the published ones, random weights, and the codes of something voiced."""
    torch.manual_seed(0)
    encoder = SeanetEncoder(dim=8, filters=2, strides=(2, 4, 5, 5))
    decoder = VocosDecoder(8, dim=32, inner=64, hop=HOP, n_fft=4 * HOP, groups=8)
    codebook = Codebook(64, 8)
    model = WavTokenizer(encoder, VectorQuantizer(codebook), decoder, RATE).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    torch.nn.init.normal_(decoder.head.out.weight, std=0.5)  # loud and soft frames
    wave = torch.from_numpy(babble(seconds))
    latents = encoder(wave[None], torch.tensor([len(wave)]))[0][0]
    scale = latents.std()
    encoder.last.conv.weight /= scale
    encoder.last.conv.bias /= scale
    codebook.embed.copy_(latents[torch.randperm(len(latents))[:64]] / scale)
    return model, Codec(model).encode(wave).values[0]


def roughness(wave: Tensor, joins: Sequence[int], width: int) -> dict[str, float]:
    """How rough joins of `width` samples are, as multiples of what the rest of the wave is.

    Of first differences and of how far spectra (32 ms every 8 ms) are from the ones before them: means and maxima.
    """
    size, step = 512, 128
    spectra = torch.stft(wave, size, step, window=torch.hann_window(size), return_complex=True, center=False).abs()
    found = {}
    for name, rough, each, span in (
        ("difference", wave.diff().abs(), 1, 1),
        ("spectrum", spectra.diff().norm(dim=0), step, size + step),
    ):
        begin = torch.arange(len(rough)) * each
        at = torch.stack([(begin < join + width) & (begin + span > join) for join in joins]).any(0)
        inner = (begin > 20 * HOP) & (begin < len(wave) - 20 * HOP)  # the ends of a recording are rough as well
        found[f"{name}, mean"] = float(rough[at & inner].mean() / rough[~at & inner].mean())
        found[f"{name}, largest"] = float(rough[at & inner].max() / rough[~at & inner].max())
    return found


def test_joins_are_no_rougher_than_what_lies_between_them() -> None:
    """1 % at most, where windows laid end to end are twice as rough and more."""
    model, codes = spoken(seconds=20)
    windows = Windowed(model)
    wave = torch.cat(list(windows.run(codes.split(100))))
    first = windows.size - windows.beside - windows.fade
    joins = [at * HOP for at in range(first, len(codes) - windows.beside, windows.step)]
    assert len(joins) > 8
    found = roughness(wave, joins, windows.fade * HOP)
    assert max(found.values()) < 1.01, found
    whole = Codec(model).decode(codes)[0]
    assert float((wave - whole).norm() / whole.norm()) < 0.01

    cut = torch.cat([Codec(model).decode(part)[0] for part in codes.split(windows.step)])
    found = roughness(cut, [at * HOP for at in range(windows.step, len(codes), windows.step)], 1)
    assert min(found["spectrum, mean"], found["spectrum, largest"]) > 2, found


def test_what_helps_beside_a_window_is_what_the_published_convolutions_see() -> None:
    decoder = VocosDecoder(8, dim=32, inner=8)
    windows = [getattr(part, "window", None) for part in decoder.modules()]
    seen = sum(window.right for window in windows if isinstance(window, Window))
    transform = -(-decoder.head.istft.cut // decoder.hop)
    assert seen + transform == BESIDE == 49


@pytest.mark.parametrize(("rate", "hop", "seconds"), [(24_000, 320, 3.0), (24_000, 600, 4.9)])
def test_at_least_half_of_a_window_is_heard(rate: int, hop: int, seconds: float) -> None:
    model = tiny.codec(rate=6 * rate // hop)
    windows = Windowed(model)
    assert windows.size / model.codes_per_second == seconds
    assert windows.step + windows.fade >= windows.size / 2
