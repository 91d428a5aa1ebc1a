"""Word error rate against mean algorithmic latency: runs of a sweep of ANCAT beside the fixed contexts of a Conformer.

python -m recipes.librispeech.latency_curve RUN_OR_SWEEP ... -o curve.png
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from matplotlib.figure import Figure

from speechkit.errors import InputError


class Point(NamedTuple):
    """A model at one latency, on one split."""

    split: str
    words: int  # in the references
    series: str  # points of one are joined
    label: str
    mean_ms: float  # from a step's own input to the input with which it came, over all steps
    longest_ms: float
    wer: float  # percent


def runs(folders: Sequence[Path]) -> list[Path]:
    """The folders themselves, or the runs inside of those that are sweeps; raises InputError where there is none."""
    found = []
    for folder in folders:
        inside = sorted(path.parent for path in folder.glob("*/scores.json"))
        if (folder / "scores.json").is_file():
            inside = [folder]
        if not inside:
            raise InputError(f"there is no run in {folder}: neither it nor a folder in it holds a scores.json")
        found += inside
    return list({path.resolve(): path for path in found}.values())


def points(run: Path, decoder: str) -> list[Point]:
    """What a run's streams scored; of a fixed look-ahead the mean is by its chunks or its window.

    Raises:
        InputError: the run is damaged.
    """
    try:
        return list(_points(run, decoder))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise InputError(f"{run} holds no run that can be read: {error!r:.200}") from error


def _points(run: Path, decoder: str) -> Iterator[Point]:
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    chunked = config["model"]["encoder"].get("style", "chunked_limited") == "chunked_limited"
    for score in json.loads((run / "scores.json").read_text(encoding="utf-8")):
        if score["mode"] != "streaming" or score["decoder"] != decoder or score["latency_ms"] is None:
            continue
        longest, wait = score["latency_ms"], score.get("wait")
        if wait is not None:
            series, label, mean = "ANCAT", f"weight {config['task']['algorithmic_weight']:g}", wait["mean"]
        else:  # the steps of a chunk wait for its last one
            series, label, mean = "fixed context", f"{longest:g} ms", longest / 2 if chunked else longest
        yield Point(score["split"], score["words"], series, label, mean, longest, 100 * score["wer"])


def table(found: Sequence[Point]) -> str:
    """Markdown."""
    lines = [
        f"| {p.split} | {p.words} | {p.series}, {p.label} | {p.mean_ms:.0f} | {p.longest_ms:.0f} | {p.wer:.2f} |"
        for p in sorted(found)
    ]
    return "\n".join(["| split | words | model | mean ms | longest ms | WER % |", "|---|---|---|---|---|---|", *lines])


def draw(found: Sequence[Point]) -> Figure:
    """A panel for each split that all series have, or for every split; a line for each series."""
    names = list(dict.fromkeys(p.series for p in found))
    splits = list(dict.fromkeys(p.split for p in found))
    common = [split for split in splits if {p.series for p in found if p.split == split} == set(names)]
    splits = common or splits
    figure = Figure(figsize=(1 + 4.5 * len(splits), 4.2), layout="constrained")
    panels = figure.subplots(1, len(splits), squeeze=False)[0]
    for split, panel in zip(splits, panels, strict=True):
        here = [p for p in found if p.split == split]
        for i, series in enumerate(names):
            line = sorted((p.mean_ms, p.wer, p.label) for p in here if p.series == series)
            panel.plot([x for x, *_ in line], [y for _, y, _ in line], "o-", color=f"C{i}", label=series)
            for x, y, label in line:
                panel.annotate(label, (x, y), textcoords="offset points", xytext=(4, 4), fontsize="x-small")
        panel.set_title(f"{split} ({here[0].words} words)")
        panel.set_xlabel("mean algorithmic latency, ms")
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    panels[0].set_ylabel("word error rate, %")
    return figure


def main(words: Sequence[str] | None = None) -> int:
    """Prints the table and writes the picture."""
    parser = argparse.ArgumentParser(prog="latency_curve", description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run folders of speechkit.train, or folders of sweeps")
    parser.add_argument("-o", "--out", type=Path, default=Path("latency_curve.png"), help="the picture")
    parser.add_argument("--decoder", choices=("rnnt", "ctc", "nar"), default="rnnt")
    options = parser.parse_args(words)
    try:
        each = {run: points(run, options.decoder) for run in runs(options.runs)}
        found = list(dict.fromkeys(point for of_run in each.values() for point in of_run))
        if not found:
            raise InputError(f"no stream was scored with the decoder {options.decoder}")
        for run in (run for run, of_run in each.items() if not of_run):
            print(f"left out: {run}, of which no stream was scored with the decoder {options.decoder}", file=sys.stderr)
        print(table(found))
        save(draw(found), options.out)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"picture: {options.out}")
    return 0


def save(figure: Figure, path: Path) -> None:
    """Writes a picture; raises InputError where it cannot be."""
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be written: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
