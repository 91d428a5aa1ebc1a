"""Codecs as users meet them: batches, pieces, lengths, and what is no audio."""

import random

import pytest
import torch
from torch import Tensor

from speechkit.codecs.codec import Codec
from speechkit.codecs.windowed import Windowed
from speechkit.errors import InputError
from tests.codecs import tiny


def pieces(x: Tensor, largest: int) -> list[Tensor]:
    random.seed(0)
    found, start = [], 0
    while start < len(x):
        size = random.randint(0, largest)
        found.append(x[start : start + size])
        start += size
    return found


@pytest.fixture(params=[(False, 1), (True, 1), (True, 3)], ids=["as published", "causal", "several codebooks"])
def codec(request: pytest.FixtureRequest) -> Codec:
    causal, books = request.param
    return Codec(tiny.codec(causal, books=books))


def columns(codec: Codec, codes: Tensor) -> Tensor:
    """(time,) -> the same code of every codebook."""
    return codes if codec.books == 1 else codes[:, None].repeat(1, codec.books)


def test_a_batch_gives_what_each_gives_alone(codec: Codec) -> None:
    torch.manual_seed(1)
    waves = [torch.randn(n) for n in (1, 5, 6, 7, 100, 333)]
    lengths = torch.tensor([len(wave) for wave in waves])
    together = codec.encode(torch.nn.utils.rnn.pad_sequence(waves, batch_first=True, padding_value=0.7), lengths)
    back = codec.decode(together)
    assert together.lengths.tolist() == [-(-len(wave) // codec.hop) for wave in waves]
    for row, wave in enumerate(waves):
        alone = codec.encode(wave)
        assert torch.equal(together.values[row, : together.lengths[row]], alone.values[0])
        expected = codec.decode(alone)[0]
        assert len(expected) == len(wave)
        torch.testing.assert_close(back[row, : len(wave)], expected, atol=1e-5, rtol=1e-5)
        assert not back[row, len(wave) :].any()


@pytest.mark.parametrize("count", [1, 6, 100, 1001])
def test_pieces_give_the_codes_of_the_whole(codec: Codec, count: int) -> None:
    torch.manual_seed(2)
    wave = torch.randn(count)
    found = list(codec.encode_stream(pieces(wave, 70)))
    assert torch.equal(torch.cat(found), codec.encode(wave).values[0])


@pytest.mark.parametrize("shape", [(301,), (301, 1), (301, 2), (301, 3)])
def test_pieces_of_a_causal_codec_give_the_samples_of_the_whole(shape: tuple[int, ...]) -> None:
    codec = Codec(tiny.codec(causal=True, books=1 if len(shape) == 1 else 3))
    codes = torch.randint(codec.size, shape)
    found = list(codec.decode_stream(pieces(codes, 9)))
    torch.testing.assert_close(torch.cat(found), codec.decode(codes)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("books", [1, 2])
def test_some_of_the_codebooks_give_what_the_first_columns_give(books: int) -> None:
    codec = Codec(tiny.codec(causal=True, books=3))
    torch.manual_seed(3)
    wave = torch.randn(100)
    all_, some = codec.encode(wave), codec.encode(wave, books=books)
    assert all_.values.shape == (1, 17, 3)
    assert torch.equal(some.values, all_.values[..., :books])
    assert torch.equal(torch.cat(list(codec.encode_stream(pieces(wave, 30), books))), some.values[0])
    assert codec.decode(some).shape == (1, 100)
    assert not torch.allclose(codec.decode(some), codec.decode(all_))


@pytest.mark.parametrize(("books", "of"), [(0, 3), (4, 3), (2, 1)])
def test_more_codebooks_than_there_are_cannot_be_had(books: int, of: int) -> None:
    codec = Codec(tiny.codec(causal=True, books=of))
    with pytest.raises(InputError, match=rf"has {of} codebooks?, not {books}"):
        codec.encode(torch.randn(100), books=books)


@pytest.mark.parametrize("shape", [(4,), (4, 5), (1, 4, 5, 2)])
def test_codes_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    codec = Codec(tiny.codec(causal=True, books=3))
    with pytest.raises(InputError, match=r"codes must be \(batch, time, 1 to 3\)"):
        codec.decode(torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize("count", [0, 1, 3, 19, 20, 21, 22, 200])
def test_windows_give_a_hop_for_every_code(count: int) -> None:
    model = tiny.codec(rate=60)  # ten codes a second
    windows = Windowed(model, window_s=2, beside_s=0.5, fade_s=0.3)
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
    windows = Windowed(model, window_s=2, beside_s=0.5, fade_s=0.3)
    for _ in windows.run([torch.randint(16, (3,)) for _ in range(400)]):
        pass
    assert longest == windows.size == 20


def test_where_windows_meet_there_is_no_click() -> None:
    """Neighbouring samples are as near there as elsewhere, of a smooth decoder that says something else each time."""
    model = tiny.codec(rate=60)
    windows = Windowed(model, window_s=2, beside_s=0.5, fade_s=0.3)
    offset = [0.0]

    def decode(codes: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        offset[0] += 1.0  # each window is its own constant: cut hard, there would be a step of 1
        return torch.full((1, codes.shape[1] * model.hop), offset[0]), lengths * model.hop

    model.decode = decode  # type: ignore[method-assign]
    wave = torch.cat(list(windows.run([torch.zeros(200, dtype=torch.int64)])))
    assert wave.diff().abs().max() <= 1.01 / (windows.fade * model.hop)


@pytest.mark.parametrize(
    ("wave", "sentence"),
    [
        (torch.tensor([0.0, torch.nan]), "NaN or Inf"),
        (torch.zeros(1, 2, 3), r"must be \(samples,\) or"),
        (torch.tensor(1.0), "must be"),
    ],
)
def test_what_is_no_wave_is_refused(codec: Codec, wave: Tensor, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        codec.encode(wave)


@pytest.mark.parametrize("code", [-1, 16, 10**12])
def test_codes_of_another_codec_are_refused(codec: Codec, code: int) -> None:
    with pytest.raises(InputError, match="codes must be from 0 to 15"):
        codec.decode(columns(codec, torch.tensor([3, code])))
    with pytest.raises(InputError, match="codes must be from 0 to 15"):
        list(codec.decode_stream([columns(codec, torch.tensor([3, code]))]))


def test_nothing_gives_nothing(codec: Codec) -> None:
    codes = codec.encode(torch.zeros(0))
    assert codes.values.shape[:2] == (1, 0)
    assert codec.decode(codes).shape == (1, 0)
    assert list(codec.encode_stream([])) == list(codec.decode_stream([])) == []
