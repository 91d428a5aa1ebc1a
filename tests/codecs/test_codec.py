"""Codecs as users meet them: batches, pieces, lengths, and what is no audio."""

import random
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from speechkit.codecs.codebook import Codebook
from speechkit.codecs.codec import Codec, Codes
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
    causal, codebooks = request.param
    return Codec(tiny.codec(causal, codebooks=codebooks))


def columns(codec: Codec, codes: Tensor) -> Tensor:
    """(time,) -> the same code of every codebook."""
    return codes if codec.codebooks == 1 else codes[:, None].repeat(1, codec.codebooks)


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
    codec = Codec(tiny.codec(causal=True, codebooks=1 if len(shape) == 1 else 3))
    codes = torch.randint(codec.size, shape)
    found = list(codec.decode_stream(pieces(codes, 9)))
    torch.testing.assert_close(torch.cat(found), codec.decode(codes)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("codebooks", [1, 2])
def test_some_of_the_codebooks_give_what_the_first_columns_give(codebooks: int) -> None:
    codec = Codec(tiny.codec(causal=True, codebooks=3))
    torch.manual_seed(3)
    wave = torch.randn(100)
    all_, some = codec.encode(wave), codec.encode(wave, codebooks=codebooks)
    assert all_.values.shape == (1, 17, 3)
    assert torch.equal(some.values, all_.values[..., :codebooks])
    assert torch.equal(torch.cat(list(codec.encode_stream(pieces(wave, 30), codebooks))), some.values[0])
    assert codec.decode(some).shape == (1, 100)
    assert not torch.allclose(codec.decode(some), codec.decode(all_))


@pytest.mark.parametrize(("codebooks", "of"), [(0, 3), (4, 3), (2, 1)])
def test_more_codebooks_than_there_are_cannot_be_had(codebooks: int, of: int) -> None:
    codec = Codec(tiny.codec(causal=True, codebooks=of))
    with pytest.raises(InputError, match=rf"has {of} codebooks?, not {codebooks}"):
        codec.encode(torch.randn(100), codebooks=codebooks)


@pytest.mark.parametrize("shape", [(4,), (4, 5), (1, 4, 5, 2)])
def test_codes_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    codec = Codec(tiny.codec(causal=True, codebooks=3))
    with pytest.raises(InputError, match=r"codes must be \(batch, time, 1 to 3\)"):
        codec.decode(torch.zeros(shape, dtype=torch.int64))


WAVES = [
    (torch.tensor([0.0, torch.nan]), "NaN or Inf"),
    (torch.zeros(1, 2, 3), r"must be \(samples,\)"),
    (torch.tensor(1.0), "must be"),
    (torch.zeros(9, dtype=torch.int64), "must hold float or int16 samples, got torch.int64"),
]


@pytest.mark.parametrize(("wave", "sentence"), WAVES)
def test_what_is_no_wave_is_refused(codec: Codec, wave: Tensor, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        codec.encode(wave)


@pytest.mark.parametrize(("piece", "sentence"), [*WAVES, (torch.zeros(9, 2), r"must be \(samples,\), got \(9, 2\)")])
def test_a_piece_that_is_no_wave_is_refused(codec: Codec, piece: Tensor, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        list(codec.encode_stream([torch.zeros(50), piece]))


@pytest.mark.parametrize(
    ("lengths", "sentence"),
    [
        (torch.tensor([9, 10]), r"lengths must be from 0 to 9 samples, got \[9, 10\]"),
        (torch.tensor([-1, 9]), "lengths must be from 0 to 9 samples"),
        (torch.tensor([9]), r"lengths must be 2 whole numbers, got \(1,\)"),
        (torch.tensor(9), "lengths must be 2 whole numbers"),
        (torch.tensor([9.0, 5.5]), "lengths must be 2 whole numbers"),
    ],
)
def test_lengths_that_are_none_of_the_rows_are_refused(codec: Codec, lengths: Tensor, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        codec.encode(torch.zeros(2, 9), lengths)


def test_samples_of_16_bits_and_in_double_precision_have_the_codes_of_single(codec: Codec) -> None:
    torch.manual_seed(4)
    wave = torch.randint(-(2**15), 2**15, (200,), dtype=torch.int16)
    expected = codec.encode(wave.float() / 2**15).values
    for same in (wave, wave.double() / 2**15):
        assert torch.equal(codec.encode(same).values, expected)
        assert torch.equal(torch.cat(list(codec.encode_stream(pieces(same, 70)))), expected[0])


def test_what_lies_on_another_device_is_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = tiny.codec(), []

    def taken(values: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        seen.append((values.device.type, lengths.device.type))
        return values, lengths

    monkeypatch.setattr(type(model), "device", torch.device("meta"))
    monkeypatch.setattr(model, "encode", taken)
    monkeypatch.setattr(model, "decode", taken)
    codec = Codec(model)
    codec.encode(torch.zeros(2, 100), torch.tensor([100, 7]))
    list(codec.decode_stream([torch.zeros(4, dtype=torch.int64)]))
    assert seen == [("meta", "meta")] * 2


@pytest.mark.parametrize("code", [-1, 16, 10**12])
def test_codes_of_another_codec_are_refused(codec: Codec, code: int) -> None:
    with pytest.raises(InputError, match="codes must be from 0 to 15"):
        codec.decode(columns(codec, torch.tensor([3, code])))
    with pytest.raises(InputError, match="codes must be from 0 to 15"):
        list(codec.decode_stream([columns(codec, torch.tensor([3, code]))]))


# What a stream waits for


def waits(made: Iterator[Tensor], fed: list[int], inputs: int, outputs: int) -> int:
    """The most inputs that an output waits for beyond the first of its own, where one is fed at a time.

    Args:
        made: pieces, as they come.
        fed: how many inputs went in by now.
        inputs, outputs: of a code.
    """
    at = [fed[0] for piece in made for _ in range(len(piece) // outputs)]
    return max(now - 1 - code * inputs for code, now in enumerate(at) if now < fed[0])  # the others came with the end


def one_by_one(x: Tensor, fed: list[int]) -> Iterator[Tensor]:
    for piece in x.split(1):
        fed[0] += 1
        yield piece


@pytest.mark.parametrize("chunks", [1, 3, 8])
@pytest.mark.parametrize("causal", [False, True])
def test_the_latencies_are_what_streams_wait_for(causal: bool, chunks: int) -> None:
    codec, fed = Codec(tiny.codec(causal, rate=60), chunks), [0]
    found = waits(codec.encode_stream(one_by_one(torch.randn(300), fed)), fed, codec.hop, 1)
    assert found + 1 == pytest.approx(codec.encoding_latency_s * codec.rate)  # its own sample included
    fed = [0]
    codes = torch.randint(codec.size, (60 if causal else 230,))  # windows are of 196
    found = waits(codec.decode_stream(one_by_one(codes, fed)), fed, 1, codec.hop)
    assert found == pytest.approx(codec.decoding_latency_s * codec.model.codes_per_second)
    assert codec.codes_per_call == chunks


def test_a_call_takes_a_code_at_least() -> None:
    with pytest.raises(InputError, match="a call must take at least one code, got 0"):
        Codec(tiny.codec(), chunks=0)


# What is longer than 30 s


def long_codec(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> tuple[Codec, list[int]]:
    """Of ten codes a second, and how many codes or samples its model took at once in calls for the whole."""
    model, taken = tiny.codec(codec.causal, rate=60, codebooks=codec.codebooks), []

    def watched(plain: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
        def call(x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
            taken.append(x.shape[1])
            return plain(x, lengths)

        return call

    monkeypatch.setattr(model, "encode", watched(model.encode))
    monkeypatch.setattr(model, "decode", watched(model.decode))
    return Codec(model), taken


def test_a_long_recording_is_encoded_in_pieces_with_the_codes_of_the_whole(
    codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(5)
    waves, lengths = torch.randn(3, 2501), torch.tensor([2501, 7, 0])
    expected, counts = codec.model.encode(waves, lengths)
    codec, taken = long_codec(codec, monkeypatch)
    found = codec.encode(waves, lengths)
    assert not taken
    assert found.lengths.tolist() == counts.tolist() == [417, 2, 0]
    for row, count in enumerate(counts.tolist()):
        assert torch.equal(found.values[row, :count], expected[row, :count])


def test_long_codes_are_decoded_in_pieces(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """A causal codec gives what it gives for the whole, another one windows; each row what it gives alone."""
    torch.manual_seed(5)
    counts = torch.tensor([1000, 290, 0])
    codes = Codes(columns(codec, torch.randint(codec.size, (1000,)))[None].repeat_interleave(3, 0), counts, counts * 6)
    whole, _ = codec.model.decode(codes.values[:1], counts[:1])
    codec, taken = long_codec(codec, monkeypatch)
    found = codec.decode(codes)
    assert max(taken) <= 300
    assert found.shape == (3, 6000)
    if codec.causal:
        torch.testing.assert_close(found[0], whole[0], atol=1e-5, rtol=1e-5)
    else:
        assert torch.equal(found[0], torch.cat(list(codec.decode_stream([codes.values[0]]))))
    torch.testing.assert_close(found[1, : 290 * 6], codec.decode(codes.values[1, :290])[0])
    assert not found[1, 290 * 6 :].any()
    assert not found[2].any()


@pytest.mark.parametrize(("size", "dim"), [(0, 8), (16, 0), (-1, 8)])
def test_a_codebook_of_nothing_is_refused(size: int, dim: int) -> None:
    with pytest.raises(InputError, match=f"at least one row of one number, got {size} rows of {dim}"):
        Codebook(size, dim)


def test_the_nearest_rows_are_sought_for_some_vectors_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    book, x = Codebook(16, 8), torch.randn(1001, 8)
    expected = book.nearest(x)
    monkeypatch.setattr("speechkit.codecs.codebook.ROWS", 100)
    plain, most = Tensor.argmax, 0

    def argmax(scores: Tensor, dim: int) -> Tensor:
        nonlocal most
        most = max(most, len(scores))
        return plain(scores, dim)

    monkeypatch.setattr(Tensor, "argmax", argmax)
    assert torch.equal(book.nearest(x), expected)
    assert most == 100


def test_nothing_gives_nothing(codec: Codec) -> None:
    codes = codec.encode(torch.zeros(0))
    assert codes.values.shape[:2] == (1, 0)
    assert codec.decode(codes).shape == (1, 0)
    assert list(codec.encode_stream([])) == list(codec.decode_stream([])) == []


def test_no_rows_are_no_rows() -> None:
    codec = Codec(tiny.codec(causal=True))
    codes = codec.encode(torch.zeros(0, 100))
    assert len(codes.values) == 0
    assert codec.decode(codes).shape[0] == 0
