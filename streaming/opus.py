"""Ogg/Opus as it comes over a connection (RFC 3533, RFC 7845): bytes in pieces of any size to samples at 48 kHz."""

from typing import Any

import numpy as np

from speechkit.errors import InputError

RATE = 48_000
MOST_S = 120  # of audio in what is pushed at once
CAPTURE = b"OggS"
HEADER, LONGEST_PACKET = 27, 61_440  # bytes; RFC 6716 allows 120 ms a packet, RFC 7845 section 6 this much


class OggOpus:
    """A decoder of one logical stream; needs the extra opus.

    Raises:
        InputError: the extra is not installed.
    """

    def __init__(self) -> None:
        try:
            import av
        except ImportError:
            raise InputError("Ogg/Opus needs the extra opus: pip install 'speechkit[opus]'") from None
        self._av = av
        self._codec: Any = None
        self._bytes = b""
        self._packet = b""  # begun on the page before
        self._headers = 0
        self._skip = 0  # samples that only prepare the decoder
        self._serial: bytes | None = None

    def push(self, data: bytes) -> np.ndarray:
        """As `Decoder.push`."""
        self._bytes += data
        found, count = [np.zeros(0, np.float32)], 0
        for packet in self._packets():
            found.append(self._decoded(packet))
            count += len(found[-1])
            if count > MOST_S * RATE:  # packets of one byte may have 120 ms
                raise InputError(f"a message holds more than {MOST_S} s of audio")
        return np.concatenate(found)

    def _packets(self) -> list[bytes]:
        found: list[bytes] = []
        while len(self._bytes) >= HEADER:
            page = self._bytes
            if not page.startswith(CAPTURE):
                raise InputError("the audio is no Ogg stream: a page does not begin where it should")
            if len(page) < HEADER + page[26]:
                break
            lacing = page[HEADER : HEADER + page[26]]
            end = HEADER + len(lacing) + sum(lacing)
            if len(page) < end:
                break
            self._serial = self._serial or page[14:18]
            if page[14:18] == self._serial:  # other streams, such as video, are not for us
                found += self._cut(page[HEADER + len(lacing) : end], lacing, continued=bool(page[5] & 1))
            self._bytes = page[end:]
        return found

    def _cut(self, body: bytes, lacing: bytes, continued: bool) -> list[bytes]:
        """The packets that end on a page; a size of 255 says that the packet goes on."""
        found, start = [], 0
        packet = self._packet if continued else b""
        for size in lacing:
            packet += body[start : start + size]
            start += size
            if len(packet) > LONGEST_PACKET:
                raise InputError("a packet of the Ogg stream is longer than Opus allows")
            if size < 255:
                found.append(packet)
                packet = b""
        self._packet = packet
        return found

    def _decoded(self, packet: bytes) -> np.ndarray:
        """(samples,) float32 of a packet; none of the two headers."""
        self._headers += 1
        if self._headers == 1:
            self._begin(packet)
        if self._headers <= 2 or not packet:
            return np.zeros(0, np.float32)
        try:
            frames = self._codec.decode(self._av.Packet(packet))
        except self._av.FFmpegError as error:
            raise InputError(f"a packet of the Opus stream cannot be decoded: {error.strerror}") from None
        samples = [_mono(frame) for frame in frames]
        joined = np.concatenate(samples) if samples else np.zeros(0, np.float32)
        skipped = min(self._skip, len(joined))
        self._skip -= skipped
        return joined[skipped:]

    def _begin(self, head: bytes) -> None:
        if len(head) < 19 or not head.startswith(b"OpusHead") or head[8] >> 4 or not 1 <= head[9] <= 8:
            raise InputError("the Ogg stream does not begin with an Opus header")
        self._codec = self._av.CodecContext.create("libopus" if "libopus" in self._av.codecs_available else "opus", "r")
        self._codec.extradata = head[:10] + b"\0\0" + head[12:]  # what is skipped is counted here
        self._codec.sample_rate = RATE
        self._skip = int.from_bytes(head[10:12], "little")


def _mono(frame: Any) -> np.ndarray:
    samples = frame.to_ndarray()
    if samples.dtype == np.int16:
        samples = samples.astype(np.float32) / 32768
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    mean: np.ndarray = samples.mean(0, dtype=np.float32)
    return mean
