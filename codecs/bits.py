"""Codes to bytes and back, with as many bits for each as its codebook needs."""

from collections.abc import Sequence

import numpy as np


def width(size: int) -> int:
    """Bits of one code of a codebook with `size` codes."""
    return (size - 1).bit_length()


def frame_bits(sizes: Sequence[int]) -> int:
    """Bits of a frame: one code of each codebook."""
    return sum(map(width, sizes))


def packed_bytes(frames: int, sizes: Sequence[int]) -> int:
    """Bytes of so many frames."""
    return -(-frames * frame_bits(sizes) // 8)


def pack(codes: np.ndarray, sizes: Sequence[int]) -> bytes:
    """(frames, codebooks) -> bytes: frame by frame, codebook by codebook, the highest bit first, zeros at the end."""
    columns = [codes[:, i, None] >> _shifts(size) & 1 for i, size in enumerate(sizes)]
    return np.packbits(np.concatenate(columns, axis=1).astype(np.uint8)).tobytes()


def unpack(data: bytes, frames: int, sizes: Sequence[int]) -> np.ndarray:
    """What `pack` made of so many frames -> (frames, codebooks) int64."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=frames * frame_bits(sizes)).reshape(frames, -1)
    codes = np.empty((frames, len(sizes)), np.int64)
    start = 0
    for i, size in enumerate(sizes):
        codes[:, i] = bits[:, start : start + width(size)] @ (1 << _shifts(size))
        start += width(size)
    return codes


def _shifts(size: int) -> np.ndarray:
    return np.arange(width(size) - 1, -1, -1)
