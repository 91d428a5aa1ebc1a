"""Causal S3 tokenizers: one set of codes, whole, in batches or piece by piece, after hours as at the start."""

import math
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speechkit.builder import build
from speechkit.codecs.quantizers import FiniteScalarQuantizer
from speechkit.codecs.s3 import SpeechTokenizer, WhisperMel
from speechkit.codecs.s3_causal import CausalS3Tokenizer, RunningMel
from speechkit.codecs.s3_causal_layers import CausalS3Encoder
from speechkit.errors import InputError
from speechkit.nn.window import Window
from speechkit.streaming.state import size_bytes
from tests.codecs.test_s3 import noise
from tests.codecs.test_s3 import tiny as published


def tiny(**changes: Any) -> CausalS3Tokenizer:
    """Chunks of 4 codes, 160 ms; random weights."""
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"mels": 20, "dim": 32, "heads": 2, "layers": 2, "memory": 5, "context": (8, 3)}
    model = CausalS3Tokenizer(CausalS3Encoder(**{**arguments, **changes}), FiniteScalarQuantizer(32, [3] * 4))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    return model.double().eval()


def whole(model: CausalS3Tokenizer, wave: Tensor) -> list[int]:
    """Codes of what is heard at once, under the masks of training."""
    with torch.no_grad():
        quantized, counts = model(wave[None], torch.tensor([len(wave)]))
    return quantized.codes[0, : int(counts)].tolist()


def streamed(model: CausalS3Tokenizer, wave: Tensor, largest: int) -> list[int]:
    pieces, start = [], 0
    while start < len(wave):
        size = random.randint(0, largest)
        pieces.append(wave[start : start + size])
        start += size
    return torch.cat([*SpeechTokenizer(model).encode_stream(pieces), torch.zeros(0, dtype=torch.int64)]).tolist()


@pytest.mark.parametrize("largest", [40, 3000, 100_000])
def test_pieces_of_any_size_have_the_codes_of_the_whole(largest: int) -> None:
    random.seed(largest)
    model = tiny()
    for frames in (0, 1, 4, 15, 16, 17, 130):
        wave = noise(frames, frames)
        expected = whole(model, wave)
        assert len(expected) == -(-frames // 4)
        assert streamed(model, wave, largest) == expected
    assert len(set(whole(model, noise(130)))) > 5


def test_batches_have_the_codes_of_each_row_alone() -> None:
    model = tiny()
    waves = [noise(frames, frames) for frames in (97, 0, 30, 211, 1)]
    codes, counts = SpeechTokenizer(model).encode(
        pad_sequence(waves, batch_first=True, padding_value=torch.nan), torch.tensor([len(wave) for wave in waves])
    )
    found = [row[:count].tolist() for row, count in zip(codes, counts.tolist(), strict=True)]
    assert found == [whole(model, wave) for wave in waves]
    assert not codes[torch.arange(codes.shape[1]) >= counts[:, None]].any()


def test_an_hour_later_the_same_sound_has_the_same_codes() -> None:
    """Positions are counted from what is remembered; the past that is out of reach leaves nothing but its loudness."""
    model = tiny()
    wave = noise(64 * 5)[: 64 * 5 * 160]
    long = torch.cat([wave] * 40)
    found = torch.tensor(streamed(model, long, 100_000)).view(40, -1)
    assert found.shape[1] == 80
    assert torch.equal(found[2, 40:], found[-1, 40:])
    state = model.encoding().init_state(1)
    assert size_bytes(state) == size_bytes(model.encoding(1).init_state(3))


@pytest.mark.parametrize(
    ("changes", "hop", "chunk"),
    [
        ({}, 640, 4),
        ({"context": (9, 8)}, 640, 9),
        ({"context": (8, 0)}, 640, 1),
        ({"context": (8, 0), "strides": (1, 1)}, 160, 1),
    ],
)
def test_a_chunk_is_known_as_soon_as_it_is_said(changes: dict[str, Any], hop: int, chunk: int) -> None:
    tokenizer, wave, heard = SpeechTokenizer(tiny(**changes)), noise(200), 0

    def pieces() -> Iterator[Tensor]:
        nonlocal heard
        for piece in wave.split(40):
            heard += len(piece)
            yield piece

    given = [(heard, len(codes)) for codes in tokenizer.encode_stream(pieces())]
    waited = (chunk - 1) * hop + 200  # up to the end of the frame that the chunk's last code needs
    assert tokenizer.encoding_latency_s == waited / 16_000
    assert given[:-1] == [(at + waited, chunk) for at in range(0, len(wave) - waited, chunk * hop)][: len(given) - 1]
    assert len(given) > 5


def test_features_are_those_of_whisper_behind_the_loudest_sound() -> None:
    torch.manual_seed(0)
    wave = noise(90)
    wave[:2000] *= 3.0
    lengths = torch.tensor([len(wave)])
    causal, counts = RunningMel(24).double()(wave[None], lengths)
    expected, _ = WhisperMel(24).double()(wave[None], lengths)
    assert counts.tolist() == [90]
    torch.testing.assert_close(causal[0, 20:88], expected[0, 20:88], atol=0.02, rtol=0)  # a window longer by one sample


def test_a_whisper_before_a_shout_is_not_held_up_by_it() -> None:
    wave = torch.cat([1e-4 * noise(50)[:8000], noise(50)])
    front = RunningMel(24).double()
    quiet, _ = front(wave[None, :8000], torch.tensor([8000]))
    both, _ = front(wave[None], torch.tensor([len(wave)]))
    torch.testing.assert_close(both[0, :48], quiet[0, :48])
    assert both[0, -10:].min() >= both[0].max() - 2.0 - 1e-9
    assert math.isfinite(float(both.abs().max()))


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (torch.tensor([0.1, torch.nan]), "the wave contains NaN or Inf"),
        (torch.tensor([-torch.inf]), "the wave contains NaN or Inf"),
        (torch.zeros(2, 320), r"must be \(batch, samples\) .* got \(1, 2, 320\)"),
        (torch.zeros(320, dtype=torch.int16), "of real numbers, got .* of torch.int16"),
    ],
)
def test_what_is_no_piece_of_a_wave_is_refused_in_one_sentence(bad: Tensor, sentence: str) -> None:
    """What was known before it has come."""
    codes = SpeechTokenizer(tiny().float()).encode_stream([noise(16).float(), torch.zeros(0), bad])
    assert len(next(codes)) == 4
    with pytest.raises(InputError, match=sentence) as refusal:
        list(codes)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_published_tokenizers_say_that_they_do_not_stream(kind: str) -> None:
    with pytest.raises(InputError, match="encodes whole recordings and does not stream") as refusal:
        list(SpeechTokenizer(published(kind)).encode_stream([torch.zeros(10)]))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"context": [-1, 3]}, "a stream's context must be limited"),
        ({"context": [8]}, "a stream's context must be limited"),
        ({"context": [9, 3]}, r"left context divisible by right \+ 1"),
        ({"memory": 0}, "memory must be at least one step"),
        ({"heads": 3}, "even multiple of heads"),
        ({"strides": [2]}, "two positive numbers"),
    ],
)
def test_configurations_of_no_tokenizer_are_refused(change: dict[str, Any], sentence: str) -> None:
    at = "speechkit.codecs."
    encoder = {"_target_": at + "s3_causal_layers.CausalS3Encoder", "dim": 32, "heads": 2, "layers": 1, **change}
    quantizer = {"_target_": at + "quantizers.FiniteScalarQuantizer", "dim": 32, "levels": [3]}
    with pytest.raises(InputError, match=sentence):
        build({"_target_": at + "s3_causal.CausalS3Tokenizer", "encoder": encoder, "quantizer": quantizer})


@pytest.mark.parametrize(("lookahead", "mode"), [(3, "zeros"), (-1, "zeros"), (0, "reflect")])
def test_windows_that_cannot_be_are_refused(lookahead: int, mode: str) -> None:
    with pytest.raises(ValueError, match="reflect nothing"):
        Window(3, 2, mode=mode, lookahead=lookahead)


def test_pieces_of_any_float_type_have_the_codes_of_the_wave() -> None:
    tokenizer, wave = SpeechTokenizer(tiny().float()), noise(2000).float()
    expected = tokenizer.encode(wave)[0][0]
    for piece in (wave, wave.double()):
        assert torch.equal(torch.cat(list(tokenizer.encode_stream([piece]))), expected)
