"""`speechkit codec roundtrip`: what a codec costs, and what it loses."""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from torch import Tensor

from speechkit.codecs.bits import frame_bits
from speechkit.commands.coding import PIECE_S, Named
from speechkit.commands.sources import Recording
from speechkit.errors import InputError
from speechkit.metrics.audio import Similarity, similarity

Item = TypeVar("Item")

SEGMENT_S = 30.0  # compared at a time: the figures of a recording are the mean of its segments'
COLUMNS = {  # heading and format
    "seconds": ("s", "{:.1f}"), "bits_per_second": ("bit/s", "{:.0f}"), "si_sdr_db": ("SI-SDR dB", "{:.1f}"),
    "stoi": ("STOI", "{:.3f}"), "pesq": ("PESQ", "{:.2f}"), "mel_distance": ("mel", "{:.3f}"),
    "encode_cpu": ("encode CPU", "{:.3f}"), "encode_wall": ("wall", "{:.3f}"), "decode_cpu": ("decode CPU", "{:.3f}"),
    "decode_wall": ("wall", "{:.3f}"),
}  # fmt: skip


@dataclass(frozen=True)
class Trip:
    """Figures of one recording or of several; times are of a second of audio (real-time factors)."""

    file: str
    seconds: float
    bits_per_second: float  # of the codes, without what a file adds
    si_sdr_db: float | None
    stoi: float | None
    pesq: float | None
    mel_distance: float | None
    encode_cpu: float
    encode_wall: float
    decode_cpu: float
    decode_wall: float


class Clock:
    """Times how long an iterator works."""

    def __init__(self) -> None:
        self.cpu = self.wall = 0.0

    def timed(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items."""
        iterator = iter(items)
        while True:
            cpu, wall = time.process_time(), time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self.cpu += time.process_time() - cpu
                self.wall += time.perf_counter() - wall
            yield item


class Report:
    """The trips of recordings through one codec, which are streams, and their total."""

    def __init__(self, named: Named) -> None:
        self.named = named
        self.trips: list[Trip] = []

    def add(self, recording: Recording, raw_rate: int | None = None) -> None:
        """Sends a recording through the codec.

        Raises:
            InputError: it cannot be used.
        """
        codec, header = self.named
        read, encoded, decoded = Clock(), Clock(), Clock()
        heard: list[Tensor] = []
        codes = 0

        def pieces() -> Iterator[Tensor]:
            for block in read.timed(recording.blocks(codec.rate, PIECE_S, raw_rate)):
                heard.append(torch.from_numpy(block))
                yield heard[-1]

        def counted() -> Iterator[Tensor]:
            nonlocal codes
            for piece in encoded.timed(codec.encode_stream(pieces())):
                codes += len(piece)
                yield piece

        samples, found = 0, []
        for ours, theirs in segments(decoded.timed(codec.decode_stream(counted())), heard, codec.rate):
            samples += len(theirs)
            found.append((len(theirs), similarity(ours, theirs, codec.rate)))
        if not samples:
            raise InputError(f"{recording.name} is shorter than one sample at {codec.rate} Hz.")
        seconds = samples / codec.rate
        means = {name: mean([(n, getattr(one, name)) for n, one in found]) for name in Similarity._fields}
        times = {
            "encode_cpu": encoded.cpu - read.cpu, "encode_wall": encoded.wall - read.wall,
            "decode_cpu": decoded.cpu - encoded.cpu, "decode_wall": decoded.wall - encoded.wall,
        }  # fmt: skip
        costs = {name: spent / seconds for name, spent in times.items()}
        bits = codes * frame_bits(header.sizes)
        self.trips.append(Trip(recording.name, seconds, bits / seconds, **means, **costs))  # type: ignore[arg-type]

    @property
    def total(self) -> Trip:
        """The mean of all, by their seconds."""
        rows = [asdict(trip) for trip in self.trips]
        values = {name: mean([(row["seconds"], row[name]) for row in rows]) for name in COLUMNS}
        return Trip("total", **values | {"seconds": sum(trip.seconds for trip in self.trips)})  # type: ignore[arg-type]

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        header = self.named.header
        about = {"model": header.model, "hash": header.weights.hex(), "bits_per_second": header.bits_per_second}
        return {**about, "files": [asdict(trip) for trip in self.trips], "total": asdict(self.total)}

    def print(self) -> None:
        """A table, with a line for each recording and their total."""
        found = Table(Column("recording", overflow="fold"), box=box.SIMPLE)
        for heading, _ in COLUMNS.values():
            found.add_column(heading, justify="right", no_wrap=True)
        for trip in [*self.trips, self.total]:
            row = asdict(trip)
            cells = ["-" if row[name] is None else form.format(row[name]) for name, (_, form) in COLUMNS.items()]
            found.add_row(escape(trip.file), *cells)
        console = Console(width=max(120, Console().width))
        console.print(found)
        header = self.named.header
        console.print(
            f"codec {escape(header.model)} ({header.hash}). CPU, wall: seconds for a second of audio. mel: mean "
            "absolute difference of log-mel magnitudes, nepers.",
            highlight=False,
        )  # fmt: skip


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


def mean(values: Sequence[tuple[float, float | None]]) -> float | None:
    """The mean by weights of what is there; None where nothing is."""
    there = [(weight, value) for weight, value in values if value is not None]
    return math.fsum(w * v for w, v in there) / math.fsum(w for w, _ in there) if there else None


def _count(pieces: Sequence[Tensor]) -> int:
    return sum(map(len, pieces))


def _taken(pieces: list[Tensor], count: int) -> np.ndarray:
    """The first samples of pieces, which are then gone from them."""
    whole = torch.cat(pieces)
    pieces[:] = [whole[count:].clone()]
    return whole[:count].numpy()
