"""A recording through a codec and back, in bounded memory: what comes of it, and what that costs."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from speechkit.codecs.bits import frame_bits
from speechkit.codecs.codec import Codec
from speechkit.codecs.quantizers import Usage
from speechkit.errors import InputError

Item = TypeVar("Item")

PIECE_S = 1.0  # of audio that the codec is given at a time
SEGMENT_S = 30.0  # compared at a time: the figures of a recording are the mean of its segments'


class Costs(NamedTuple):
    """Times are of a second of audio: real-time factors."""

    bits_per_second: float  # of the codes, without what a file adds
    encode_cpu: float
    encode_wall: float
    decode_cpu: float
    decode_wall: float


class Clock:
    """Adds up how long something works."""

    def __init__(self) -> None:
        self.cpu = self.wall = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts what is done meanwhile."""
        cpu, wall = time.process_time(), time.perf_counter()
        try:
            yield
        finally:
            self.cpu += time.process_time() - cpu
            self.wall += time.perf_counter() - wall

    def timed(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items; counts what the iterator does."""
        iterator = iter(items)
        while True:
            with self.running():
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item


class RoundTrip:
    """What is decoded beside what was heard, in segments of at most 30 s; when they have been taken, what they cost.

    Args:
        codec: encodes and decodes.
        pieces: (samples,) at its rate, of any size.
        codebooks: of a codec with several codebooks, the first ones alone.
        whole_s: recordings of up to so many seconds go through the codec whole, longer ones as streams.

    Attributes:
        samples: that were compared.
        usage: how often each code came.
    """

    def __init__(
        self, codec: Codec, pieces: Iterable[np.ndarray], codebooks: int | None = None, whole_s: float = 0.0
    ) -> None:
        self.codec, self.pieces, self.codebooks, self.whole_s = codec, pieces, codebooks or codec.codebooks, whole_s
        self.device = codec.model.device
        self.usage = Usage(codec.size, self.codebooks)
        self.samples = 0
        self._heard: list[Tensor] = []
        self._read, self._encoded, self._decoded = Clock(), Clock(), Clock()

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pairs (samples,) of one length, decoded and heard.

        Raises:
            InputError: what is decoded holds NaN or Inf; and what `pieces` raises.
        """
        pieces, head, count = iter(self.pieces), list[np.ndarray](), 0
        for piece in pieces:
            head.append(piece)
            count += len(piece)
            if count > self.whole_s * self.codec.rate:
                found = self._stream(chain(head, pieces))
                break
        else:
            found = self._whole(np.concatenate(head)) if count else iter(())
        for ours, theirs in found:
            if not np.isfinite(ours).all():
                raise InputError(f"the codec gives NaN or Inf back after {self.seconds:.0f} s")
            self.samples += len(theirs)
            yield ours, theirs

    @property
    def seconds(self) -> float:
        """Of audio that was compared."""
        return self.samples / self.codec.rate

    @property
    def costs(self) -> Costs:
        """Of a second, where some of it was compared."""
        bits = int(self.usage.counts[0].sum()) * frame_bits((self.codec.size,) * self.codebooks)
        spent = (
            self._encoded.cpu - self._read.cpu, self._encoded.wall - self._read.wall,
            self._decoded.cpu - self._encoded.cpu, self._decoded.wall - self._encoded.wall,
        )  # fmt: skip
        return Costs(*(value / self.seconds for value in (bits, *spent)))

    def _whole(self, wave: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        sound = torch.from_numpy(wave).to(self.device)
        with self._decoded.running():
            with self._encoded.running():
                codes = self.codec.encode(sound, codebooks=self.codebooks)
                values = codes.values[0].cpu()  # waits for the device
            decoded = self.codec.decode(codes)[0].cpu()
        self.usage.update(values)
        yield from segments([decoded], [torch.from_numpy(wave)], self.codec.rate)

    def _stream(self, pieces: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        decoded = (piece.cpu() for piece in self.codec.decode_stream(self._codes(pieces)))
        return segments(self._decoded.timed(decoded), self._heard, self.codec.rate)

    def _codes(self, pieces: Iterable[np.ndarray]) -> Iterator[Tensor]:
        for codes in self._encoded.timed(self.codec.encode_stream(self._sound(pieces), self.codebooks)):
            self.usage.update(codes.cpu())
            yield codes

    def _sound(self, pieces: Iterable[np.ndarray]) -> Iterator[Tensor]:
        for piece in self._read.timed(pieces):
            self._heard.append(torch.from_numpy(piece))
            yield self._heard[-1].to(self.device)


def segments(decoded: Iterable[Tensor], heard: list[Tensor], rate: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of equal length, decoded and heard; takes away from `heard`, which grows while `decoded` is asked."""
    size = round(SEGMENT_S * rate)
    ours: list[Tensor] = []
    for piece in decoded:
        ours.append(piece)
        while min(_count(ours), _count(heard)) >= size:
            yield _taken(ours, size), _taken(heard, size)
    if left := min(_count(ours), _count(heard)):
        yield _taken(ours, left), _taken(heard, left)


def _count(pieces: Sequence[Tensor]) -> int:
    return sum(map(len, pieces))


def _taken(pieces: list[Tensor], count: int) -> np.ndarray:
    """The first samples of pieces, which are then gone from them."""
    whole = torch.cat(pieces)
    pieces[:] = [whole[count:].clone()]
    return whole[:count].numpy()
