"""Audio from files and pipes: read, look at, stream in bounded memory, resample and write."""

import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from speechkit.errors import InputError
from speechkit.files import replace
from speechkit.reader import MAX_CHANNELS, Info, Reader, Source, check_peak, check_rate, open_source

__all__ = [
    "SUFFIXES",
    "Info",
    "Source",
    "StreamResampler",
    "blocks",
    "checked",
    "info",
    "prepare",
    "read",
    "write",
]

SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3")


class StreamResampler:
    """Resample a mono signal that comes in pieces; the pieces together equal `soxr.resample` of the whole.

    Args:
        rate_in: sample rate of what is pushed, Hz.
        rate_out: sample rate of what comes back, Hz. Equal rates pass samples through untouched.
    """

    def __init__(self, rate_in: int, rate_out: int) -> None:
        for rate in (rate_in, rate_out):
            check_rate(rate, "the resampler")
        self._stream = None if rate_in == rate_out else soxr.ResampleStream(rate_in, rate_out, 1, dtype="float32")

    def push(self, samples: np.ndarray) -> np.ndarray:
        """(samples,) at rate_in -> (samples',) float32 at rate_out, as many as are final."""
        samples = np.ascontiguousarray(samples, np.float32)
        return samples if self._stream is None else self._stream.resample_chunk(samples)

    def flush(self) -> np.ndarray:
        """The samples held back by the filter; ends the stream, so that the next push starts a new one."""
        empty = np.zeros(0, np.float32)
        if self._stream is None:
            return empty
        tail = self._stream.resample_chunk(empty, last=True)
        self._stream.clear()
        return tail


def info(source: Source) -> Info:
    """Look at the header only; audio of a length that the header does not say is decoded to count it.

    Raises:
        InputError: missing, empty, not audio, or a rate or channel count that is not supported.
    """
    with open_source(source) as reader:
        if reader.sized:
            return reader.info
        frames = sum(len(piece) for piece in reader.pieces(None))
        return reader.info._replace(frames=frames, seconds=frames / reader.info.rate)


def read(
    source: Source,
    rate: int | None = 16_000,
    *,
    start: float = 0.0,
    seconds: float | None = None,
    max_seconds: float | None = None,
) -> np.ndarray:
    """Read a file as mono (the mean of its channels) at `rate` -> (samples,) float32.

    Args:
        source: a path, or a binary file object that can seek.
        rate: sample rate of the result, Hz; None keeps the file's own.
        start: where to begin, in seconds.
        seconds: how much to read; None reads to the end. A file that ends sooner is an error.
        max_seconds: longer audio is an error, found from the header or, where that is wrong, while reading.

    Raises:
        InputError: missing, empty, without samples, truncated, damaged, not audio, NaN or Inf samples or some beyond a
            hundred times full scale, unsupported rate or channels, longer than `max_seconds`.
    """
    with open_source(source) as reader:
        own = reader.info.rate
        if seconds is None:
            _check_length(reader.info.seconds - start, max_seconds, reader.name)
        reader.seek(round(start * own))
        want = None if seconds is None else round(seconds * own)
        pieces = list(_limited(reader.pieces(want), reader, max_seconds))
        wave = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        if rate is not None and rate != own:
            wave = soxr.resample(wave, own, rate)
            if len(wave) == 0:
                raise InputError(f"{reader.name} is shorter than one sample at {rate} Hz.")
    return wave


def checked(samples: np.ndarray) -> np.ndarray:
    """Samples from a program -> (samples,) float32: int16 is scaled to [-1, 1), channels (last axis) are averaged.

    Raises:
        InputError: NaN or Inf, samples beyond a hundred times full scale, more than two axes, over 64 channels (which
            are time, most likely), or numbers that are neither float nor int16.
    """
    samples = np.asarray(samples)
    samples = samples.astype(samples.dtype.newbyteorder("="), copy=False)
    if samples.dtype == np.int16:
        samples = samples.astype(np.float32) / 32768
    if not np.issubdtype(samples.dtype, np.floating) or samples.ndim not in (1, 2):
        raise InputError(
            "Samples must be float or int16 of shape (samples,) or (samples, channels), "
            f"got {samples.dtype} {samples.shape}."
        )
    if samples.ndim == 2 and not 1 <= samples.shape[1] <= MAX_CHANNELS:
        raise InputError(f"Samples of shape {samples.shape} have {samples.shape[1]} channels: transpose them.")
    wave = samples.mean(axis=1) if samples.ndim == 2 else samples
    if not np.isfinite(wave).all():
        raise InputError("The samples contain NaN or Inf.")
    check_peak(wave, "The audio")
    return np.ascontiguousarray(wave, np.float32)


def prepare(samples: np.ndarray, rate: int, target: int) -> np.ndarray:
    """Samples from a program at `rate` -> (samples,) float32 at `target`; errors as `checked`."""
    wave = checked(samples)
    check_rate(rate, "the samples")
    return wave if rate == target or not len(wave) else soxr.resample(wave, rate, target)


def blocks(
    source: Source,
    rate: int = 16_000,
    seconds: float = 1.0,
    *,
    raw_rate: int | None = None,
    max_seconds: float | None = None,
) -> Iterator[np.ndarray]:
    """Stream a file of any length in bounded memory: mono pieces (samples,) float32 at `rate`.

    The pieces are about `seconds` long and together equal `read`. A file that turns out to be truncated or damaged
    gives what is good first and raises then.

    Args:
        source: a path, a file object, or a pipe such as `sys.stdin.buffer` ("-") that carries WAV.
        rate: sample rate of the pieces, Hz.
        seconds: length of a piece.
        raw_rate: the source has no header and carries mono 16-bit little-endian samples at this rate.
        max_seconds: longer audio is an error, raised where the limit is passed.

    Raises:
        InputError: as `read`; also for a pipe that carries something else than WAV.
    """
    with open_source(source, raw_rate) as reader:
        resampler = StreamResampler(reader.info.rate, rate)
        size = max(1, round(seconds * reader.info.rate))
        for piece in _limited(reader.pieces(None, size), reader, max_seconds):
            if len(out := resampler.push(piece)):
                yield out
        if len(out := resampler.flush()):
            yield out


def write(path: str | os.PathLike[str], wave: np.ndarray, rate: int = 16_000) -> None:
    """Write (samples,) or (samples, channels) floats in [-1, 1]; the suffix chooses FLAC, WAV, OGG, Opus or MP3.

    The file appears whole or not at all, and a file that was there before survives a failure.

    Raises:
        InputError: unknown suffix, NaN or Inf samples, a folder that cannot be written, a full disk.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"Cannot write {path}: the suffix must be one of {', '.join(SUFFIXES)}, got '{path.suffix}'.")
    wave = np.asarray(wave, np.float32)
    if not np.isfinite(wave).all():
        raise InputError(f"Cannot write {path}: the samples contain NaN or Inf.")
    opus = suffix == ".opus"
    encoded = io.BytesIO()
    try:
        soundfile.write(
            encoded, wave, rate, format="OGG" if opus else suffix[1:].upper(), subtype="OPUS" if opus else None
        )
    except (soundfile.LibsndfileError, ValueError) as error:
        raise InputError(f"Cannot write {path} at {rate} Hz: {error}") from error
    replace(path, encoded.getvalue())


def _limited(pieces: Iterator[np.ndarray], reader: Reader, max_seconds: float | None) -> Iterator[np.ndarray]:
    count = 0
    for piece in pieces:
        count += len(piece)
        _check_length(count / reader.info.rate, max_seconds, reader.name)
        yield piece


def _check_length(seconds: float, max_seconds: float | None, name: str) -> None:
    if max_seconds is not None and seconds > max_seconds:
        raise InputError(f"{name} is longer than the limit of {max_seconds:g} s.")
