"""What is known of a codec on a split: a record, and its table."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import jiwer
from rich import box
from rich.table import Column, Table

from speechkit.codecs.quantizers import Usage
from speechkit.codecs.roundtrip import Costs, RoundTrip
from speechkit.metrics.audio import mean

FIGURES = {  # name, unit and format; those of `Similarity` and of the models that listen
    "si_sdr_db": ("SI-SDR, dB", "{:.2f}"), "stoi": ("STOI", "{:.4f}"), "pesq": ("PESQ, wideband", "{:.3f}"),
    "mel_distance": ("mel distance, nepers", "{:.3f}"), "mcd_db": ("mel-cepstral distortion, dB", "{:.2f}"),
    "f0_rmse_hz": ("pitch RMSE, Hz", "{:.1f}"), "f0_rmse_cents": ("pitch RMSE, cents", "{:.0f}"),
    "voicing_f1": ("V/UV F1", "{:.4f}"), "utmos_original": ("UTMOS of originals", "{:.3f}"),
    "utmos": ("UTMOS", "{:.3f}"),
}  # fmt: skip
REST = {  # of a split as a whole
    "bits_per_second": ("bit rate, bit/s", "{:.0f}"), "utilization": ("codes used, %", "{:.1%}"),
    "perplexity": ("perplexity of the codes", "{:.1f}"), "words": ("words", "{}"),
    "wer_original": ("WER of originals, %", "{:.1%}"), "wer": ("WER, %", "{:.1%}"),
    "encode_wall": ("encoding, s for a second", "{:.3f}"), "decode_wall": ("decoding, s for a second", "{:.3f}"),
    "real_time_factor": ("real-time factor of both", "{:.3f}"),
}  # fmt: skip


class Heard(NamedTuple):
    """Of a recording."""

    seconds: float
    figures: dict[str, float | None]  # by the names of `FIGURES`; None where one means nothing
    costs: Costs
    said: tuple[str, str, str] | None  # its text, what was heard of the original, and of the reconstruction


@dataclass(frozen=True)
class CodecScore:
    """Of a split. Figures are means over recordings, costs and error rates those of all of it."""

    split: str
    whole: bool  # whether all recordings had their turn
    recordings: int
    skipped: int
    seconds: float
    costs: Costs
    figures: dict[str, float | None]
    counted: dict[str, int]  # recordings in which a figure means something
    utilization: float  # share of the codes that came, the mean over the codebooks
    perplexity: float
    words: int  # in the texts
    wer_original: float | None
    wer: float | None

    @property
    def real_time_factor(self) -> float:
        """Wall seconds of encoding and decoding a second."""
        return self.costs.encode_wall + self.costs.decode_wall

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without levels but for `counted`."""
        plain = asdict(self)
        figures, counted, costs = plain.pop("figures"), plain.pop("counted"), self.costs._asdict()
        plain.pop("costs")
        return {**plain, **figures, **costs, "real_time_factor": self.real_time_factor, "counted": counted}


class Tally:
    """Adds recordings up.

    Args:
        split: they are of it.
        size: codes of a codebook.
        codebooks: codebooks.
    """

    def __init__(self, split: str, size: int, codebooks: int = 1) -> None:
        self.split, self.usage = split, Usage(size, codebooks)
        self.heard: list[Heard] = []

    def add(self, heard: Heard, trip: RoundTrip) -> None:
        """One recording."""
        self.heard.append(heard)
        self.usage.counts += trip.usage.counts

    def score(self, skipped: int, whole: bool = True) -> CodecScore:
        """Of all so far, at least one."""
        found = {name: [one.figures[name] for one in self.heard] for name in FIGURES}
        utilization, perplexity = self.usage.compute()
        said = [one.said for one in self.heard if one.said is not None]
        seconds = math.fsum(one.seconds for one in self.heard)
        texts, before, after = ([row[i] for row in said] for i in range(3))
        return CodecScore(
            self.split,
            whole,
            len(self.heard),
            skipped,
            seconds=seconds,
            costs=Costs(*(math.fsum(one.seconds * one.costs[i] for one in self.heard) / seconds for i in range(5))),
            figures={name: mean([(1, value) for value in values]) for name, values in found.items()},
            counted={name: sum(value is not None for value in values) for name, values in found.items()},
            utilization=utilization,
            perplexity=perplexity,
            words=sum(len(text.split()) for text in texts),
            wer_original=float(jiwer.wer(texts, before)) if said else None,
            wer=float(jiwer.wer(texts, after)) if said else None,
        )


def table(scores: Sequence[CodecScore]) -> Table:
    """A line for every figure, a column for each split; in brackets where it means nothing in some recordings."""
    shown = Table("", *(Column(s.split, justify="right", overflow="fold") for s in scores), box=box.SIMPLE, padding=0)
    rows = [s.as_dict() for s in scores]
    shown.add_row("recordings", *(str(s.recordings) + ("" if s.whole else ", stopped") for s in scores))
    shown.add_row("skipped", *(str(s.skipped) for s in scores))
    shown.add_row("seconds", *(f"{s.seconds:.1f}" for s in scores))
    for name, (title, form) in (FIGURES | REST).items():
        cells = [_cell(row, name, form) for row in rows]
        shown.add_row(title, *cells)
    return shown


def _cell(row: dict[str, Any], name: str, form: str) -> str:
    value = row[name]
    if value is None:
        return "-"
    count = row["counted"].get(name, row["recordings"])
    return form.format(value).rstrip("%") + (f" (of {count})" if count < row["recordings"] else "")
