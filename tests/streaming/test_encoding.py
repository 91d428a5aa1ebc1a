"""Bytes on the wire become the samples that were sent."""

import io

import numpy as np
import pytest
import soundfile

from speechkit.errors import InputError
from speechkit.streaming.encoding import ENCODINGS, Pcm
from speechkit.streaming.opus import OggOpus
from tests.asr.tiny import babble


def written(wave: np.ndarray, subtype: str, rate: int = 8000) -> bytes:
    """Samples in a file without a header."""
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format="RAW", subtype=subtype, endian="LITTLE")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("encoding", "subtype"), [("s16le", "PCM_16"), ("f32le", "FLOAT"), ("mulaw", "ULAW"), ("alaw", "ALAW")]
)
@pytest.mark.parametrize("channels", [1, 2])
def test_samples_are_those_that_libsndfile_reads(encoding: str, subtype: str, channels: int) -> None:
    wave = np.stack([babble(0.5, 8000, seed) for seed in range(channels)], 1)
    data = written(wave, subtype)
    expected, _ = soundfile.read(
        io.BytesIO(data), dtype="float32", channels=channels, samplerate=8000, format="RAW", subtype=subtype,
        endian="LITTLE", always_2d=True,
    )  # fmt: skip
    np.testing.assert_allclose(Pcm(encoding, channels).push(data), expected.mean(1), atol=1e-6)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_cut_messages_give_the_same(encoding: str) -> None:
    data = np.random.default_rng(0).integers(0, 60, 2400, np.uint8).tobytes()  # small numbers in every encoding
    whole = Pcm(encoding, 3).push(data)
    decoder = Pcm(encoding, 3, cut=True)
    pieces = [decoder.push(data[i : i + 7]) for i in range(0, len(data), 7)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def opus(wave: np.ndarray, rate: int = 48_000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format="OGG", subtype="OPUS")
    return buffer.getvalue()


@pytest.mark.parametrize("size", [1, 100, 5000, 10**6])
@pytest.mark.parametrize("channels", [1, 2])
def test_ogg_opus_in_pieces_of_any_size(size: int, channels: int) -> None:
    pytest.importorskip("av")
    wave = np.stack([babble(1.0, 48_000, seed) for seed in range(channels)], 1)
    data = opus(wave)
    expected, _ = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    decoder = OggOpus()
    found = np.concatenate([decoder.push(data[i : i + size]) for i in range(0, len(data), size)])
    assert len(found) >= len(expected)  # what the last packet has behind the end is kept
    np.testing.assert_allclose(found[: len(expected)], expected.mean(1), atol=2e-3)


@pytest.mark.parametrize(
    "data",
    [
        b"RIFF" + bytes(60),
        b"OggS" + bytes(22) + b"\1\x08notOpus!",
        b"OggS" + bytes(22) + b"\xff" + b"\xff" * 255 + bytes(65_025),
    ],
)
def test_what_is_no_ogg_opus_is_refused(data: bytes) -> None:
    pytest.importorskip("av")
    with pytest.raises(InputError):
        OggOpus().push(data)


def test_damaged_packets_are_refused_or_decoded_but_never_more() -> None:
    pytest.importorskip("av")
    data, rng = bytearray(opus(babble(1.0, 48_000))), np.random.default_rng(0)
    for _ in range(100):
        broken = bytearray(data)
        for position in rng.integers(200, len(data), 5):
            broken[position] = int(rng.integers(0, 256))
        decoder = OggOpus()
        try:
            decoder.push(bytes(broken))
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017 (most of them can be decoded)
