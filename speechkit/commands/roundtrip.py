"""`speechkit codec roundtrip`: what a codec costs, and what it loses."""

from dataclasses import asdict, dataclass

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from speechkit.codecs.codec import Codec
from speechkit.codecs.roundtrip import PIECE_S, RoundTrip
from speechkit.commands.coding import Named, described
from speechkit.commands.sources import Recording
from speechkit.errors import InputError
from speechkit.metrics.audio import averaged, mean, similarity

COLUMNS = {  # heading and format
    "seconds": ("s", "{:.1f}"), "bits_per_second": ("bit/s", "{:.0f}"), "si_sdr_db": ("SI-SDR\ndB", "{:.1f}"),
    "stoi": ("STOI", "{:.3f}"), "pesq": ("PESQ", "{:.2f}"), "mel_distance": ("mel", "{:.3f}"),
    "mcd_db": ("MCD\ndB", "{:.2f}"), "f0_rmse_hz": ("F0\nHz", "{:.1f}"), "f0_rmse_cents": ("F0\ncents", "{:.0f}"),
    "voicing_f1": ("V/UV\nF1", "{:.3f}"), "encode_cpu": ("encode\nCPU", "{:.3f}"), "encode_wall": ("wall", "{:.3f}"),
    "decode_cpu": ("decode\nCPU", "{:.3f}"), "decode_wall": ("wall", "{:.3f}"),
}  # fmt: skip


@dataclass(frozen=True)
class Trip:
    """Figures of one recording or of several, see `Similarity` and `Costs`."""

    file: str
    seconds: float
    bits_per_second: float
    si_sdr_db: float | None
    stoi: float | None
    pesq: float | None
    mel_distance: float | None
    mcd_db: float | None
    f0_rmse_hz: float | None
    f0_rmse_cents: float | None
    voicing_f1: float | None
    encode_cpu: float
    encode_wall: float
    decode_cpu: float
    decode_wall: float


class Report:
    """The trips of recordings through one codec, which are streams, and their total."""

    def __init__(self, named: Named[Codec]) -> None:
        self.named = named
        self.trips: list[Trip] = []

    def add(self, recording: Recording, raw_rate: int | None = None) -> None:
        """Sends a recording through the codec.

        Raises:
            InputError: it cannot be used.
        """
        codec, header = self.named
        trip = RoundTrip(codec, recording.blocks(codec.rate, PIECE_S, raw_rate), len(header.sizes))
        found = [(len(theirs), similarity(ours, theirs, codec.rate)) for ours, theirs in trip]
        if not found:
            raise InputError(f"{recording.name} is shorter than one sample at {codec.rate} Hz.")
        figures = averaged(found) | trip.costs._asdict()
        self.trips.append(Trip(recording.name, trip.seconds, **figures))  # type: ignore[arg-type]

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
        waits = {name: value for name, value in described(self.named).items() if name.endswith("_ms")}
        return {**about, **waits, "files": [asdict(trip) for trip in self.trips], "total": asdict(self.total)}

    def print(self) -> None:
        """A table, with a line for each recording and their total."""
        found = Table(Column("recording", overflow="fold", min_width=24), box=box.SIMPLE, padding=(0, 1, 0, 0))
        for heading, _ in COLUMNS.values():
            found.add_column(heading, justify="right", no_wrap=True)
        for trip in [*self.trips, self.total]:
            row = asdict(trip)
            cells = ["-" if row[name] is None else form.format(row[name]) for name, (_, form) in COLUMNS.items()]
            found.add_row(escape(trip.file), *cells)
        console = Console(width=max(132, Console().width))  # so many columns: no number may be cut
        console.print(found)
        header = self.named.header
        console.print(
            f"codec {escape(header.model)} ({header.hash}). CPU, wall: seconds for a second of audio. mel: mean "
            "absolute difference of log-mel magnitudes, nepers. F0: root mean square error of the pitch.",
            highlight=False,
        )  # fmt: skip
        about = described(self.named)
        waits = (f"{name} {about[f'{name}_latency_ms']} ms ({about[name]})" for name in ("encoding", "decoding"))
        console.print(f"Algorithmic latency: {', '.join(waits)}.", highlight=False)
