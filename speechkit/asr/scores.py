"""Scores as a table for the terminal, and as a picture of word error rate against latency."""

import io
from collections.abc import Sequence

from matplotlib.figure import Figure
from rich import box
from rich.table import Column, Table

from speechkit.asr.evaluation import Score


def table(scores: Sequence[Score]) -> Table:
    """One line for every split, decoder and look-ahead: error rates offline and of streams, delay, real-time factor."""
    rates = ("WER %\noff/stream", "CER %\noff/stream")
    delays = ["delay ms\nmean/p50/p90"] if any(s.delay is not None for s in scores) else []
    shown = Table(Column("split", overflow="fold"), box=box.SIMPLE, padding=0)  # 80 columns hold it
    for name in ("words", "decoder", "ahead\nms", *rates, *delays, "RTF"):
        shown.add_column(name, no_wrap=True)
    lines: dict[tuple[str, str, str], dict[str, Score]] = {}
    for s in scores:
        lines.setdefault((s.split, _name(s), latency(s)), {})[s.mode] = s
    before = ""
    for (split, decoder, ahead), modes in lines.items():
        if before not in ("", split):
            shown.add_section()
        pair = [modes.get(mode) for mode in ("offline", "streaming")]
        cells = ["/".join("-" if s is None else f"{100 * getattr(s, k):.2f}" for s in pair) for k in ("wer", "cer")]
        last = modes.get("streaming") or modes["offline"]
        if delays:
            delay = last.delay
            cells.append("-" if delay is None else f"{delay.mean:.0f}/{delay.p50:.0f}/{delay.p90:.0f}")
        shown.add_row(
            *((split, str(last.words)) if split != before else ("", "")),
            decoder,
            ahead,
            *cells,
            f"{last.real_time_factor:.3f}",
        )
        before = split
    return shown


def latency(score: Score) -> str:
    """The look-ahead in words; of an adaptive one the mean wait, and the longest possible."""
    if score.wait is not None:
        return f"{score.wait.mean:.0f} (to {score.latency_ms:g})"
    return "full" if score.latency_ms is None else f"{score.latency_ms:g}"


def plot(scores: Sequence[Score]) -> bytes:
    """A PNG image with a panel for each split: streams as lines, offline decoding as marks, full context as a level.

    An adaptive look-ahead stands at its mean wait.
    """
    splits = list(dict.fromkeys(s.split for s in scores))
    figure = Figure(figsize=(1 + 4.5 * len(splits), 4.2), layout="constrained")
    panels = figure.subplots(1, len(splits), squeeze=False, sharey=True)[0]
    for split, panel in zip(splits, panels, strict=True):
        here = [s for s in scores if s.split == split]
        names = list(dict.fromkeys(_name(s) for s in here))
        for i, name in enumerate(names):
            for mode, style in (("streaming", "o-"), ("offline", "x--")):
                line = sorted(
                    (s.latency_ms if s.wait is None else s.wait.mean, 100 * s.wer)
                    for s in here
                    if (_name(s), s.mode) == (name, mode) and s.latency_ms is not None
                )
                if line:
                    panel.plot(*zip(*line, strict=True), style, color=f"C{i}", label=f"{name}, {mode}")
            for s in here:
                if _name(s) == name and s.latency_ms is None:
                    panel.axhline(100 * s.wer, color=f"C{i}", linestyle=":", label=f"{name}, full context")
        panel.set_title(f"{split} ({here[0].words} words)")
        panel.set_xlabel("mean wait, ms" if any(s.wait for s in here) else "longest look-ahead, ms")
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    panels[0].set_ylabel("word error rate, %")
    image = io.BytesIO()
    figure.savefig(image, dpi=130)
    return image.getvalue()


def _name(score: Score) -> str:
    return score.decoder if score.beam == 1 else f"{score.decoder}, beam {score.beam}"
