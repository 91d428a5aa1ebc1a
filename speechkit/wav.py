"""RIFF WAVE headers: audio from a pipe, and whether a file holds what its header says."""

import struct
from typing import BinaryIO, NamedTuple

import numpy as np

from speechkit.errors import InputError

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
PLAIN = (PCM, FLOAT)  # encodings whose byte count gives the sample count
ENDLESS = 0x7FFFF000  # a writer that cannot seek back leaves a size of about 2 or 4 GiB (ffmpeg, sox)


class WavHeader(NamedTuple):
    """What the `fmt ` chunk says, and how many bytes of samples should follow (None: until the end of the stream)."""

    encoding: int
    channels: int
    rate: int
    block: int  # bytes of one sample of all channels
    data_bytes: int | None


def read_header(stream: BinaryIO, name: str) -> WavHeader | None:
    """Read up to the first byte of samples, by reading forward only; None where the bytes are no RIFF WAVE file.

    Raises:
        InputError: the header is cut off or says something that cannot be.
    """
    head = exactly(stream, 12)
    if not head:
        raise InputError(f"{name} is empty (0 bytes).")
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return None
    fmt = b""
    while len(chunk := exactly(stream, 8)) == 8:
        kind, size = chunk[:4], struct.unpack("<I", chunk[4:])[0]
        if kind == b"data":
            if len(fmt) < 16:
                break
            return _parse(fmt, size, name)
        if size > 1 << 20:  # no header chunk of a megabyte is honest; do not read it into memory
            break
        body = exactly(stream, size + size % 2)
        if kind == b"fmt ":
            fmt = body
    raise InputError(
        f"The WAV header of {name} is damaged: there is no readable 'fmt ' chunk followed by a 'data' chunk."
    )


def _parse(fmt: bytes, size: int, name: str) -> WavHeader:
    encoding, channels, rate, _, block = struct.unpack("<HHIIH", fmt[:14])
    if encoding == EXTENSIBLE and len(fmt) >= 26:
        encoding = struct.unpack("<H", fmt[24:26])[0]
    if channels < 1 or block < 1 or (encoding in PLAIN and block % channels):
        raise InputError(
            f"The WAV header of {name} is damaged: it says {channels} channels and {block} bytes a sample."
        )
    return WavHeader(encoding, channels, rate, block, None if size == 0 or size >= ENDLESS else size)


def exactly(stream: BinaryIO, count: int) -> bytes:
    """Read `count` bytes, fewer only at the end: a pipe gives what it has, not what was asked for."""
    parts, missing = [], count
    while missing > 0 and (part := stream.read(missing)):
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def decode(data: bytes, header: WavHeader, name: str) -> np.ndarray:
    """Bytes of whole samples -> (samples, channels) float32 in [-1, 1]."""
    bits = header.block // header.channels * 8
    match header.encoding, bits:
        case (1, 16):
            values = np.frombuffer(data, "<i2").astype(np.float32) / 2**15
        case (1, 32):
            values = (np.frombuffer(data, "<i4") / 2**31).astype(np.float32)
        case (1, 24):
            wide = np.zeros((len(data) // 3, 4), np.uint8)
            wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
            values = (wide.view("<i4")[:, 0] / 2**31).astype(np.float32)
        case (1, 8):
            values = (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
        case (3, 32):
            values = np.frombuffer(data, "<f4").astype(np.float32)
        case (3, 64):
            values = np.frombuffer(data, "<f8").astype(np.float32)
        case _:
            raise InputError(
                f"Cannot read a WAV stream of encoding {header.encoding} with {bits} bits from {name}: "
                "send PCM of 8, 16, 24 or 32 bits or floats (ffmpeg: -f wav -c:a pcm_s16le)."
            )
    return values.reshape(-1, header.channels)
