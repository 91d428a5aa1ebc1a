"""Bytes on the wire become samples: linear and companded PCM, of one or several channels."""

from typing import Protocol

import numpy as np

from speechkit.errors import InputError


class Decoder(Protocol):
    """Pieces of a byte stream to samples."""

    def push(self, data: bytes) -> np.ndarray:
        """(samples,) float32; what does not fill a sample waits where that is allowed.

        Raises:
            InputError: the bytes are not what was announced.
        """
        ...


def _companded(law: str) -> np.ndarray:
    """All 256 codes of ITU-T G.711 as float32 in [-1, 1)."""
    codes = np.arange(256)
    if law == "mulaw":
        flipped = ~codes & 0xFF
        size = ((((flipped & 0x0F) << 3) + 0x84) << ((flipped & 0x70) >> 4)) - 0x84
        values = np.where(flipped & 0x80, -size, size)
    else:
        flipped = codes ^ 0x55
        exponent, mantissa = (flipped & 0x70) >> 4, flipped & 0x0F
        size = np.where(exponent == 0, (mantissa << 4) + 8, ((mantissa << 4) + 0x108) << np.maximum(exponent - 1, 0))
        values = np.where(flipped & 0x80, size, -size)
    return (values / 32768).astype(np.float32)


WIDTHS = {"s16le": 2, "f32le": 4, "mulaw": 1, "alaw": 1}  # bytes of a sample
_TABLES = {law: _companded(law) for law in ("mulaw", "alaw")}
ENCODINGS = tuple(WIDTHS)


class Pcm:
    """Uncompressed samples.

    Args:
        encoding: ``s16le``, ``f32le`` (in [-1, 1]), ``mulaw``, ``alaw``.
        channels: interleaved, averaged to one.
        cut: messages may end within a sample.

    Raises:
        InputError: there is no such encoding or number of channels.
    """

    def __init__(self, encoding: str = "s16le", channels: int = 1, cut: bool = False) -> None:
        if encoding not in WIDTHS:
            raise InputError(f"encoding must be one of {', '.join(ENCODINGS)}, opus, got {encoding[:40]!r}")
        if not 1 <= channels <= 16:
            raise InputError(f"channels must be from 1 to 16, got {channels}")
        self.encoding, self.channels, self.cut = encoding, channels, cut
        self.frame = WIDTHS[encoding] * channels  # bytes
        self._rest = b""

    def push(self, data: bytes) -> np.ndarray:
        """As `Decoder.push`."""
        if self.cut:
            data = self._rest + data
            whole = len(data) - len(data) % self.frame
            data, self._rest = data[:whole], data[whole:]
        elif len(data) % self.frame:
            raise InputError(
                f"a message of {len(data)} bytes does not hold whole samples: {self.encoding} of {self.channels} "
                f"channel{'s' * (self.channels > 1)} takes {self.frame} bytes"
            )
        samples = self._samples(data)
        return samples.reshape(-1, self.channels).mean(1, dtype=np.float32) if self.channels > 1 else samples

    def _samples(self, data: bytes) -> np.ndarray:
        if self.encoding == "s16le":
            return np.frombuffer(data, "<i2").astype(np.float32) / 32768
        if self.encoding == "f32le":
            samples = np.frombuffer(data, "<f4")
            if not np.isfinite(samples).all():
                raise InputError("the audio holds NaN or Inf")
            if len(samples) and np.abs(samples).max() > 16:
                raise InputError("the audio goes far beyond [-1, 1]: is it really f32le?")
            return samples.astype(np.float32)
        return _TABLES[self.encoding][np.frombuffer(data, np.uint8)]
