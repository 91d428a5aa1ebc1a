"""An open source of samples, a file or a pipe: what its header says, and mono pieces that have been checked."""

import contextlib
import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile

from speechkit import ogg, wav
from speechkit.errors import InputError

Source = str | os.PathLike[str] | BinaryIO

RATES = (4_000, 384_000)  # Hz
MAX_CHANNELS = 64
UNKNOWN = 1 << 48  # libsndfile gives the largest integer where the length is not known
BLOCK = 1 << 16  # samples decoded at a time, all channels
LOUDEST = 100.0  # full scale is 1; 16-bit numbers as floats are larger, and would be heard as something else


class Info(NamedTuple):
    """What the header of a file says."""

    rate: int  # Hz
    channels: int
    frames: int  # samples of one channel
    seconds: float


class Reader:
    """Samples that come in order, from whatever decodes them."""

    def __init__(
        self,
        name: str,
        header: Info,
        decode: Callable[[int], np.ndarray],
        seek: Callable[[int], object] | None = None,
        slack: int | None = 0,
    ) -> None:
        self.name = name
        self.info = header
        self._decode = decode  # count -> (samples, channels) float32, empty at the end
        self._seek = seek
        self._slack = slack  # samples that the header may promise too many; None: it promises nothing
        self._left = header.frames
        check_rate(header.rate, name)
        if not 1 <= header.channels <= MAX_CHANNELS:
            raise InputError(f"{name} has {header.channels} channels; 1 to {MAX_CHANNELS} are supported.")

    @property
    def sized(self) -> bool:
        """Whether the header says how many samples there are."""
        return self._slack is not None

    def seek(self, frame: int) -> None:
        """Go to a sample; only the start is always possible."""
        if frame == 0:
            return
        if self._seek is None or not self.sized or not 0 < frame < self.info.frames:
            at = frame / self.info.rate
            raise InputError(f"Cannot start at {at:.2f} s in {self.name}, which has {self.info.seconds:.2f} s.")
        self._seek(frame)
        self._left = self.info.frames - frame

    def pieces(self, want: int | None, size: int | None = None) -> Iterator[np.ndarray]:
        """Yield (samples,) of at most `size` up to `want` or the end, then see that nothing was missing."""
        size = size or max(1, BLOCK // self.info.channels)
        got = 0
        while want is None or got < want:
            piece = self._decode(size if want is None else min(size, want - got))
            if len(piece) == 0:
                break
            mono = piece[:, 0] if piece.shape[1] == 1 else piece.mean(axis=1, dtype=np.float32)
            if not np.isfinite(mono).all():
                at = (got + int(np.isfinite(mono).argmin())) / self.info.rate
                raise InputError(f"{self.name} contains NaN or Inf samples near {at:.2f} s.")
            check_peak(mono, self.name)
            got += len(piece)
            yield mono
        promised = self._left if want is None else want
        slack = self._slack if want is None else self.info.rate // 100  # a segment's borders are rounded
        if slack is not None and got < promised - slack:
            rate = self.info.rate
            raise InputError(f"{self.name} is truncated: {promised / rate:.2f} s expected, {got / rate:.2f} s found.")
        if got == 0:
            raise InputError(f"{self.name} holds no samples.")


def check_rate(rate: int, name: str) -> None:
    """Refuse sample rates that no recording has."""
    if not RATES[0] <= rate <= RATES[1]:
        raise InputError(f"{name} has a sample rate of {rate} Hz; {RATES[0]} to {RATES[1]} Hz are supported.")


def check_peak(samples: np.ndarray, name: str) -> None:
    """Refuse numbers that are no sound in [-1, 1], be it 16-bit numbers or what makes features infinite."""
    peak = float(np.abs(samples).max()) if len(samples) else 0.0
    if peak > LOUDEST:
        raise InputError(
            f"{name} has samples as large as {peak:.3g}, where 1 is full scale (divide 16-bit numbers by 32768)."
        )


@contextlib.contextmanager
def open_source(source: Source, raw_rate: int | None = None) -> Iterator[Reader]:
    """Open a path, a file object that can seek, or a pipe ("-" is standard input); `raw_rate`: there is no header."""
    if isinstance(source, (str, os.PathLike)) and os.fspath(source) != "-":
        path = Path(source)
        _check_path(path)
        try:
            with path.open("rb") as file:
                yield _reader(file, str(path), str(path), raw_rate)
        except OSError as error:
            raise InputError(f"Cannot read {path}: {error.strerror or error}.") from error
    else:
        stream = sys.stdin.buffer if isinstance(source, (str, os.PathLike)) else source
        name = getattr(stream, "name", "the stream")
        if not isinstance(name, str):  # of an upload there is none, of a descriptor a number
            name = "the file" if name is None else "the stream"
        yield _reader(stream, None, name, raw_rate)


def _reader(stream: BinaryIO, path: str | None, name: str, raw_rate: int | None) -> Reader:
    forward = raw_rate is not None or not stream.seekable()
    return _stream(stream, name, raw_rate) if forward else _sound(stream, path, name)


def _check_path(path: Path) -> None:
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path}.") from error
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror or error}.") from error
    except ValueError as error:  # a name with NUL or half a character
        raise InputError(f"There is no file {str(path)!r}: {error}.") from error
    if stat.S_ISDIR(found.st_mode):
        raise InputError(f"{path} is a folder, but an audio file is needed.")
    if found.st_size == 0 and stat.S_ISREG(found.st_mode):
        raise InputError(f"{path} is empty (0 bytes).")


class _SoundFile(soundfile.SoundFile):
    """Reads forward: soundfile's seek after every read costs time, and fails in a FLAC that was written to a pipe."""

    def seekable(self) -> bool:
        return False


def _opened(stream: BinaryIO, path: str | None, name: str) -> _SoundFile:
    try:
        return _SoundFile(path or stream)
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: the suffix .raw asks for parameters
        if stream.seek(0, os.SEEK_END) == 0:
            raise InputError(f"{name} is empty (0 bytes).") from error
        raise InputError(
            f"{name} is not audio that can be read, or it is damaged (FLAC, WAV, OGG, Opus and MP3 are supported)."
        ) from error


def _sound(stream: BinaryIO, path: str | None, name: str) -> Reader:
    """What libsndfile reads (from the path where there is one, which is faster), with its silent repairs undone."""
    sound = _opened(stream, path, name)
    whole = sound.format != "OGG" or ogg.is_whole(stream)

    def decode(count: int) -> np.ndarray:
        try:
            samples: np.ndarray = sound.read(count, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise InputError(f"{name} is truncated or damaged ({error.error_string.strip(' .')}).") from error
        if len(samples) == 0 and not whole:
            seconds = sound.frames / sound.samplerate
            raise InputError(f"{name} is truncated: {seconds:.2f} s found, and its Ogg stream does not end there.")
        return samples

    frames: int = sound.frames
    slack: int | None = 0
    if frames > UNKNOWN:  # a FLAC that was written to a pipe
        frames, slack = 0, None
    elif sound.format in ("WAV", "WAVEX"):
        position = stream.tell()  # libsndfile goes on from here where it reads a file object
        stream.seek(0)
        header = wav.read_header(stream, name)
        if header and header.data_bytes and header.encoding in wav.PLAIN:
            frames = max(frames, header.data_bytes // header.block)  # libsndfile shortens a truncated file silently
        if frames == 0 and header and header.data_bytes is None:  # the writer died before it filled in the size
            stream.seek(0)
            return _stream(stream, name, None)
        stream.seek(position)
    elif sound.format == "MP3":  # the header holds an estimate, and the encoder's delay is cut
        slack = max(4 * 1152, frames // 100)
    info = Info(sound.samplerate, sound.channels, frames, frames / sound.samplerate)
    return Reader(name, info, decode, sound.seek, slack)


def _stream(stream: BinaryIO, name: str, raw_rate: int | None) -> Reader:
    """What comes through a pipe: WAV, or mono 16-bit samples without a header."""
    header = wav.WavHeader(wav.PCM, 1, raw_rate, 2, None) if raw_rate else wav.read_header(stream, name)
    if header is None:
        raise InputError(f"{name} is a pipe that does not carry WAV audio; send WAV (ffmpeg: -f wav -).")
    left = header.data_bytes  # what follows the samples (tags) must not be heard

    def decode(count: int) -> np.ndarray:
        nonlocal left
        size = count * header.block
        data = wav.exactly(stream, size if left is None else min(size, left))
        left = None if left is None else left - len(data)
        return wav.decode(data[: len(data) // header.block * header.block], header, name)

    frames = (header.data_bytes or 0) // header.block
    info = Info(header.rate, header.channels, frames, frames / header.rate)
    return Reader(name, info, decode, None, None if header.data_bytes is None else 0)
