"""Token files (`.skc`): packed codes in blocks that are written and read as a stream; see docs/codec-format.md."""

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from speechkit.codecs.bits import frame_bits, pack, packed_bytes, unpack
from speechkit.codecs.token_header import FIXED, MAGIC, VERSION, TokenHeader
from speechkit.errors import InputError
from speechkit.wav import exactly

__all__ = ["TokenHeader", "TokenReader", "TokenWriter"]

BLOCK, END = b"B", b"E"
FRAMES = 256  # of a block: 2 % of it is no code, at 12 bits a code
MAX_PAYLOAD = 1 << 16  # bytes of codes in a block
TOTALS, COUNT, CHECKSUM = struct.Struct("<QQ"), struct.Struct("<H"), struct.Struct("<I")


class TokenWriter:
    """Writes codes as they come; a file without `end` is refused by readers.

    Args:
        stream: written forward only, flushed after every block.
        header: of the codes; written at once.
        frames: of a block, which is written when it is full; fewer where their codes are large.
    """

    def __init__(self, stream: BinaryIO, header: TokenHeader, frames: int = FRAMES) -> None:
        self.header, self._stream, self._crc = header, stream, 0
        self._room = max(1, min(frames, (1 << 16) - 1, MAX_PAYLOAD * 8 // frame_bits(header.sizes)))
        self._waiting = np.zeros((0, len(header.sizes)), np.int64)
        self.frames = 0  # that were given
        self._put(header.pack())

    def write(self, codes: np.ndarray) -> None:
        """(frames,) or (frames, codebooks), any number of them.

        Raises:
            InputError: another number of codebooks, or a code that is none of theirs.
        """
        codes = np.asarray(codes, np.int64)
        codes = codes[:, None] if codes.ndim == 1 else codes
        sizes = np.array(self.header.sizes)
        if codes.ndim != 2 or codes.shape[1] != len(sizes):
            raise InputError(f"codes must be (frames, {len(sizes)}), got {codes.shape}")
        if len(codes) and (codes.min() < 0 or (codes >= sizes).any()):
            raise InputError(
                f"codes must be from 0 to {max(self.header.sizes) - 1}, got {codes.min()} to {codes.max()}"
            )
        self.frames += len(codes)
        waiting = np.concatenate([self._waiting, codes])
        while len(waiting) >= self._room:
            self._block(waiting[: self._room])
            waiting = waiting[self._room :]
        self._waiting = waiting

    def end(self, samples: int) -> None:
        """Writes what waits and the end mark, with how many samples the codes were made of.

        Raises:
            InputError: so many samples do not give so many codes, or the header says another number.
        """
        self.header.check_total(self.frames, samples)
        if len(self._waiting):
            self._block(self._waiting)
        self._put(END + TOTALS.pack(self.frames, samples))

    def _block(self, codes: np.ndarray) -> None:
        self._put(BLOCK + COUNT.pack(len(codes)) + pack(codes, self.header.sizes))

    def _put(self, part: bytes) -> None:
        self._crc = zlib.crc32(part, self._crc)
        self._stream.write(part + CHECKSUM.pack(self._crc))
        self._stream.flush()


class TokenReader:
    """Reads codes as they come, each block once it is known to be whole.

    Args:
        stream: read forward only.
        name: for messages.

    Raises:
        InputError: no token file, one of another version, or a header that is cut off, damaged or absurd.
    """

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self.name, self._stream, self._crc = name, stream, 0
        self.frames = 0  # that were read
        self.bytes = 0
        self.header = self._header()
        self.samples = self.header.samples  # None: not known before the end

    def blocks(self) -> Iterator[np.ndarray]:
        """(frames, codebooks) int64, some at a time; afterwards `samples` is known.

        Raises:
            InputError: the file is cut off or damaged there, holds codes that its codebooks lack, or goes on.
        """
        where = f"after {self.frames} codes"
        while (kind := self._take(1, where)) == BLOCK:
            yield self._block(where)
            where = f"after {self.frames} codes"
        if kind != END:
            raise InputError(f"{self.name} is damaged {where}: neither codes nor an end mark follow")
        frames, samples = TOTALS.unpack(self._take(TOTALS.size, where))
        self._check(f"{where}: its end mark")
        if frames != self.frames:
            raise InputError(f"{self.name} is damaged: it says that it holds {frames} codes, and holds {self.frames}")
        try:
            self.header.check_total(frames, samples)
        except InputError as error:
            raise InputError(f"{self.name} is damaged: {error}") from None
        if self._stream.read(1):
            raise InputError(f"{self.name} goes on after its end mark: something else was appended to it")
        self.samples = samples

    def _header(self) -> TokenHeader:
        head = exactly(self._stream, len(MAGIC) + 1)
        if not head:
            raise InputError(f"{self.name} is empty (0 bytes)")
        if head[: len(MAGIC)] != MAGIC[: len(head)]:
            raise InputError(f"{self.name} is no token file (.skc)")
        if len(head) > len(MAGIC) and head[-1] != VERSION:
            raise InputError(
                f"{self.name} is a token file of version {head[-1]}, this version of speechkit reads {VERSION}"
            )
        where = "in its header"
        head += self._rest(head, FIXED, where)
        for length in (4 * head[len(MAGIC) + 1], 1):
            head += self._rest(b"", length, where)
        head += self._rest(b"", head[-1], where)
        self._crc = zlib.crc32(head)
        self.bytes = len(head)
        self._check("in its header")
        try:
            return TokenHeader.unpack(head)
        except InputError as error:
            raise InputError(f"{self.name} describes no codec: {error}") from None

    def _block(self, where: str) -> np.ndarray:
        frames = COUNT.unpack(self._take(COUNT.size, where))[0]
        sizes = self.header.sizes
        if not 0 < packed_bytes(frames, sizes) <= MAX_PAYLOAD:
            raise InputError(
                f"{self.name} is damaged {where}: a block says that it holds {frames} codes, more than one may or none"
            )
        data = self._take(packed_bytes(frames, sizes), where)
        self._check(where)
        codes = unpack(data, frames, sizes)
        if (codes >= np.array(sizes)).any():
            raise InputError(
                f"{self.name} holds the code {codes.max()} {where}, where its codebook ends at {max(sizes) - 1}"
            )
        self.frames += frames
        return codes

    def _take(self, count: int, where: str) -> bytes:
        data = self._rest(b"", count, where)
        self._crc = zlib.crc32(data, self._crc)
        self.bytes += count
        return data

    def _rest(self, head: bytes, count: int, where: str) -> bytes:
        """What is missing of so many bytes."""
        data = exactly(self._stream, count - len(head))
        if len(head) + len(data) < count:
            raise InputError(f"{self.name} is cut off or damaged: it ends {where}, without an end mark")
        return data

    def _check(self, where: str) -> None:
        stored = self._rest(b"", CHECKSUM.size, where)
        self.bytes += CHECKSUM.size
        if CHECKSUM.unpack(stored)[0] != self._crc:
            raise InputError(f"{self.name} is damaged {where}: the checksum does not fit")
