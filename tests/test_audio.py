"""Audio input and output: every format, every rate, and one clear sentence for whatever cannot be read."""

import io
import os
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import pytest
import soundfile
import soxr

from speechkit import audio
from speechkit.errors import InputError
from tests.paths import DATA, needs_data

RATE = 16_000


def tone(seconds: float = 0.5, rate: int = RATE, hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encode(wave: np.ndarray, rate: int = RATE, kind: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format=kind, subtype=subtype)
    return file.getvalue()


def pipe(data: bytes) -> BinaryIO:
    """The reading end of a real pipe that is filled in small pieces."""
    source, sink = os.pipe()

    def feed() -> None:
        with os.fdopen(sink, "wb", buffering=0) as file:
            for begin in range(0, len(data), 1001):
                try:
                    file.write(data[begin : begin + 1001])
                except BrokenPipeError:
                    return

    threading.Thread(target=feed, daemon=True).start()
    return os.fdopen(source, "rb")


@pytest.mark.parametrize("suffix", audio.SUFFIXES)
def test_every_format_is_written_and_read_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    audio.write(path, tone(), RATE)
    wave = audio.read(path)
    header = audio.info(path)
    assert (header.rate, header.channels) == (RATE if suffix != ".opus" else header.rate, 1)
    assert wave.dtype == np.float32
    assert wave.ndim == 1
    assert abs(len(wave) - 8000) <= 1200  # MP3 pads
    lossless = suffix in (".wav", ".flac")
    middle = slice(2000, 6000)
    if lossless:
        np.testing.assert_allclose(wave, tone(), atol=1e-4)
    assert np.sqrt(np.mean(wave[middle] ** 2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.1)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (44_100, 2), (192_000, 1), (16_000, 8), (11_026, 3)])
def test_any_rate_and_channel_count_just_works(tmp_path: Path, rate: int, channels: int) -> None:
    path = tmp_path / "a.wav"
    gains = np.linspace(0.5, 1.5, channels) if channels > 1 else np.ones(1)
    soundfile.write(path, tone(rate=rate)[:, None] * gains, rate, subtype="FLOAT")
    wave = audio.read(path)
    assert len(wave) == 8000
    np.testing.assert_allclose(wave[1000:7000], tone()[1000:7000], atol=2e-3)
    assert audio.info(path) == audio.Info(rate, channels, rate // 2, 0.5)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_blocks_together_equal_the_whole(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "a.flac"
    audio.write(path, np.random.default_rng(0).normal(0, 0.1, rate * 2 + 77), rate)
    pieces = list(audio.blocks(path, RATE, seconds=0.13))
    assert len(pieces) > 10
    assert max(map(len, pieces)) < 3 * 0.13 * RATE
    np.testing.assert_array_equal(np.concatenate(pieces), audio.read(path))


def test_pieces_of_a_stream_equal_resampling_the_whole() -> None:
    rng = np.random.default_rng(1)
    wave = rng.normal(0, 0.1, 20_000).astype(np.float32)
    resampler = audio.StreamResampler(44_100, RATE)
    for _ in range(2):  # after a flush it starts anew
        cuts = np.sort(rng.integers(0, len(wave), 30))
        out = [resampler.push(piece) for piece in np.split(wave, cuts)]
        whole = np.concatenate([*out, resampler.flush()])
        np.testing.assert_array_equal(whole, soxr.resample(wave, 44_100, RATE))


def test_equal_rates_pass_through() -> None:
    resampler = audio.StreamResampler(RATE, RATE)
    np.testing.assert_array_equal(resampler.push(tone()), tone())
    assert len(resampler.flush()) == 0


def test_a_segment_is_the_same_part_of_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    audio.write(path, np.random.default_rng(2).normal(0, 0.1, RATE), RATE)
    np.testing.assert_array_equal(audio.read(path, start=0.25, seconds=0.5), audio.read(path)[4000:12_000])
    np.testing.assert_array_equal(audio.read(path, start=0.25), audio.read(path)[4000:])
    with pytest.raises(InputError, match=r"truncated: 2.00 s expected, 0.75 s found"):
        audio.read(path, start=0.25, seconds=2)
    with pytest.raises(InputError, match=r"Cannot start at 7.00 s"):
        audio.read(path, start=7)


def test_file_objects_are_read_like_paths() -> None:
    data = encode(tone(), kind="FLAC")
    np.testing.assert_allclose(audio.read(io.BytesIO(data)), tone(), atol=1e-4)
    assert audio.info(io.BytesIO(data)).seconds == 0.5
    with pytest.raises(InputError, match="empty"):
        audio.read(io.BytesIO())


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("kind", ["WAV", "WAVEX"])
def test_a_pipe_gives_what_the_file_gives(subtype: str, kind: str) -> None:
    data = encode(np.stack([tone(), 0.5 * tone()], axis=1), 22_050, kind, subtype)
    with pipe(data) as stream:
        wave = np.concatenate(list(audio.blocks(stream, RATE, seconds=0.1)))
    np.testing.assert_allclose(wave, audio.read(io.BytesIO(data)), atol=1e-6)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_a_wav_of_unknown_length_is_read_to_its_end(tmp_path: Path, size: int) -> None:
    data = bytearray(encode(tone()))
    data[40:44] = size.to_bytes(4, "little")  # as ffmpeg leaves it in a pipe, and a writer that died in a file
    with pipe(bytes(data)) as stream:
        np.testing.assert_allclose(np.concatenate(list(audio.blocks(stream))), tone(), atol=1e-4)
    (tmp_path / "a.wav").write_bytes(data)
    np.testing.assert_allclose(audio.read(tmp_path / "a.wav"), tone(), atol=1e-4)
    assert audio.info(tmp_path / "a.wav").frames == len(tone())


def test_a_flac_that_was_written_to_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    data = bytearray(encode(tone(), kind="FLAC"))
    data[21] &= 0xF0  # 36 bits of the sample count in STREAMINFO
    data[22:26] = bytes(4)
    (tmp_path / "a.flac").write_bytes(data)
    assert audio.info(tmp_path / "a.flac") == audio.Info(RATE, 1, 8000, 0.5)
    np.testing.assert_allclose(audio.read(tmp_path / "a.flac"), tone(), atol=1e-4)


class Silence(io.RawIOBase):
    """A pipe of so many zero bytes."""

    def __init__(self, count: int) -> None:
        self.left = count

    def read(self, size: int = -1) -> bytes:
        size = min(size, self.left)
        self.left -= size
        return bytes(size)

    def seekable(self) -> bool:
        return False


def test_three_hours_need_no_more_memory_than_a_minute() -> None:
    peaks = []
    for seconds in (60, 3 * 3600):
        tracemalloc.start()
        stream = cast(BinaryIO, Silence(2 * RATE * seconds))
        count = sum(len(piece) for piece in audio.blocks(stream, RATE, seconds=10, raw_rate=RATE))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert count == RATE * seconds
    assert peaks[1] < 1.1 * peaks[0] < 10e6


def test_standard_input_is_a_dash(monkeypatch: pytest.MonkeyPatch) -> None:
    with pipe(encode(tone())) as stream:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(stream))
        assert sum(map(len, audio.blocks("-"))) == len(tone())


def test_a_pipe_without_a_header_takes_its_rate_from_the_caller() -> None:
    data = (tone(rate=8000) * 2**15).astype("<i2").tobytes()
    with pipe(data) as stream:
        wave = np.concatenate(list(audio.blocks(stream, 8000, raw_rate=8000)))
    np.testing.assert_allclose(wave, tone(rate=8000), atol=1e-4)


@pytest.mark.parametrize(
    "data", [b"", b"no audio at all", b"RIFF\0\0\0\0WAVEjunk\xff\xff\xff\xff", encode(tone(), kind="FLAC")]
)
def test_a_pipe_of_something_else_is_refused(data: bytes) -> None:
    with pipe(data) as stream, pytest.raises(InputError, match=r"empty|pipe|damaged"):
        list(audio.blocks(stream))


def test_a_pipe_that_breaks_off_gives_what_came_and_then_says_so() -> None:
    got: list[np.ndarray] = []
    with pipe(encode(tone())[:8044]) as stream, pytest.raises(InputError, match=r"truncated: 0.50 s expected, 0.25 s"):
        got.extend(audio.blocks(stream, seconds=0.1))
    assert sum(map(len, got)) == 4000


def broken(folder: Path) -> Iterator[tuple[str, bytes | None, str]]:
    """File name, content (None: no such file), what the error says."""
    yield "missing.wav", None, "There is no file"
    yield "empty.flac", b"", r"empty \(0 bytes\)"
    yield "zero.wav", encode(tone()[:0]), "holds no samples"
    yield "text.txt", b"this is not audio. " * 50, "not audio that can be read"
    yield "noise.mp3", np.random.default_rng(0).bytes(3000), "not audio that can be read"
    yield "plain.raw", bytes(1000), "not audio that can be read"
    yield "header.flac", b"fLaC" + bytes(60), "not audio that can be read"
    for suffix, kind in {".wav": "WAV", ".flac": "FLAC", ".mp3": "MP3", ".ogg": "OGG"}.items():
        data = encode(np.random.default_rng(0).normal(0, 0.1, 32_000), kind=kind)
        yield f"cut{suffix}", data[: len(data) // 2], "truncated|holds no samples"
    voice = encode(np.random.default_rng(0).normal(0, 0.1, 96_000), kind="OGG", subtype="OPUS")
    yield "late.opus", voice[: len(voice) * 9 // 10], r"is truncated: 4.97 s found, and its Ogg stream does not end"
    yield "page.opus", voice[: voice.rindex(b"OggS") + 20], "is truncated: 4.97 s found"
    yield (
        "nan.wav",
        encode(np.where(np.arange(8000) == 4000, np.nan, tone()), subtype="FLOAT"),
        r"NaN or Inf .* 0\.\d\d s",
    )
    yield "inf.wav", encode(np.where(np.arange(8000) == 4000, np.inf, tone()), subtype="FLOAT"), "NaN or Inf"
    yield "slow.wav", encode(tone(), 1000), "sample rate of 1000 Hz"
    yield "fast.wav", encode(tone(), 500_000), "sample rate of 500000 Hz"
    yield "many.wav", encode(np.zeros((100, 65))), "65 channels"


@pytest.mark.parametrize("case", list(broken(Path())), ids=lambda case: case[0])
def test_what_cannot_be_read_is_named_in_one_sentence(tmp_path: Path, case: tuple[str, bytes | None, str]) -> None:
    name, content, message = case
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        audio.read(tmp_path / name)
    assert name in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=message):
        list(audio.blocks(tmp_path / name))


@pytest.mark.parametrize("subtype", ["OPUS", "VORBIS"])
@pytest.mark.parametrize("tag", [b"", b"TAG" + bytes(125)])
def test_an_ogg_file_that_is_whole_is_read_as_path_and_as_object(tmp_path: Path, subtype: str, tag: bytes) -> None:
    data = encode(np.random.default_rng(0).normal(0, 0.1, 96_000), kind="OGG", subtype=subtype) + tag
    (tmp_path / "a.ogg").write_bytes(data)
    assert len(audio.read(tmp_path / "a.ogg")) == len(audio.read(io.BytesIO(data))) == 96_000


@pytest.mark.parametrize("subtype", ["OPUS", "VORBIS"])
def test_a_truncated_ogg_file_gives_what_came_and_then_says_so(tmp_path: Path, subtype: str) -> None:
    data = encode(np.random.default_rng(0).normal(0, 0.1, 96_000), kind="OGG", subtype=subtype)
    (tmp_path / "a.ogg").write_bytes(data[:-1])
    got: list[np.ndarray] = []
    with pytest.raises(InputError, match="Ogg stream does not end there"):
        got.extend(audio.blocks(tmp_path / "a.ogg"))
    assert sum(map(len, got)) == audio.info(tmp_path / "a.ogg").frames > 64_000
    assert len(audio.read(tmp_path / "a.ogg", start=1, seconds=2)) == 32_000


@pytest.mark.parametrize("name", ["a\0b.wav", "\ud800.wav", "a" * 5000 + ".wav"])
def test_a_name_that_no_file_can_have_is_said_in_one_sentence(name: str) -> None:
    with pytest.raises(InputError, match=r"There is no file|Cannot read"):
        audio.info(name)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        audio.info(tmp_path)


def test_a_limit_holds_whatever_the_header_says(tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", tone(1.0))
    assert len(audio.read(tmp_path / "a.wav", max_seconds=1.0)) == RATE
    with pytest.raises(InputError, match=r"longer than the limit of 0.5 s"):
        audio.read(tmp_path / "a.wav", max_seconds=0.5)
    data = bytearray(encode(tone(1.0)))
    data[40:44] = b"\xff" * 4
    with pipe(bytes(data)) as stream, pytest.raises(InputError, match="longer than the limit"):
        list(audio.blocks(stream, seconds=0.1, max_seconds=0.5))


def test_a_failed_write_leaves_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.wav"
    audio.write(path, tone())
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        audio.write(path, tone(1.0))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="suffix must be one of"):
        audio.write(tmp_path / "a.aac", tone())
    with pytest.raises(InputError, match="NaN"):
        audio.write(tmp_path / "a.wav", np.full(10, np.nan))
    with pytest.raises(InputError, match="No such file"):
        audio.write(tmp_path / "nowhere" / "a.wav", tone())
    with pytest.raises(InputError, match="Cannot write"):
        audio.write(tmp_path / "a.mp3", tone(), rate=12_345)


@needs_data
def test_real_recordings_are_read() -> None:
    path = DATA / "tts" / "misc" / "jfk.flac"
    wave = audio.read(path)
    assert audio.info(path).rate == 24_000
    assert len(wave) == pytest.approx(audio.info(path).seconds * RATE, abs=1)
    assert 0.01 < np.sqrt(np.mean(wave**2)) < 0.5


def test_channels_first_are_refused_and_not_taken_for_two_samples() -> None:
    with pytest.raises(InputError, match="transpose them"):
        audio.checked(np.zeros((2, 16000), np.float32))
