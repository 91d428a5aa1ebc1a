"""Lists of utterances: the JSONL manifest, and the folder layouts that become one."""

import csv
import dataclasses
import difflib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from speechkit import audio
from speechkit.data.utterance import MAX_BAD, Utterance, probed
from speechkit.errors import InputError
from speechkit.files import replace

__all__ = [
    "Utterance",
    "find",
    "from_folder",
    "from_lhotse_shar",
    "from_librispeech",
    "from_ljspeech",
    "read_manifest",
    "write_manifest",
]

log = logging.getLogger(__name__)

# The names that other toolkits' manifests use.
_ALIASES = {
    "path": ("path", "audio_filepath", "audio", "wav"),
    "text": ("text", "transcript", "sentence"),
    "id": ("id", "utt_id", "key"),
    "seconds": ("seconds", "duration"),
    "rate": ("rate", "sample_rate", "sampling_rate"),
    "start": ("start", "offset"),
    "speaker": ("speaker", "speaker_id"),
    "split": ("split",),
}


def find(name: str, root: Path | None, cache_dir: Path, max_bad: float = MAX_BAD) -> list[Utterance]:
    """What a user names in `data.train`: a split of `root`, a table (.jsonl, .tsv), or a folder of a known layout.

    A split of `root` comes from ROOT/manifests/SPLIT.jsonl where that is, else from LibriSpeech's layout. A folder
    may be one split of LibriSpeech's layout, LJSpeech (metadata.csv) or Lhotse Shar (cuts.*.jsonl.gz, unpacked to
    `cache_dir` once).

    Raises:
        InputError: there is nothing of that name, or too much of it cannot be used.
    """
    path = Path(name).expanduser()
    if path.suffix in (".jsonl", ".json"):
        return read_manifest(path, max_bad)
    if path.suffix == ".tsv":
        return from_folder(path.parent, path, max_bad)
    if root is not None and (written := root / "manifests" / f"{name}.jsonl").is_file():
        log.info("%s: from %s", name, written)
        return read_manifest(written, max_bad)
    if root is not None and (root / name).is_dir():
        return from_librispeech(root, name, max_bad)
    if (path / "metadata.csv").is_file():
        return from_ljspeech(path, max_bad)
    if any(path.glob("cuts.*.jsonl*")):
        return from_lhotse_shar(path, cache_dir / "shar" / path.resolve().name, max_bad)
    if path.is_dir() and any(path.glob("*/*/*.trans.txt")):
        return from_librispeech(path.parent, path.name, max_bad)
    if root is not None:
        raise InputError(f"There is no split {name} in {root}{_near(root, name)}.")
    raise InputError(
        f"{name} is neither a manifest (.jsonl, .tsv) nor a folder in the layout of LibriSpeech, LJSpeech or Lhotse "
        "Shar; the name of a split needs the folder of its corpus (data.root)."
    )


def read_manifest(path: str | os.PathLike[str], max_bad: float = MAX_BAD) -> list[Utterance]:
    """Read JSONL: one object per line with at least `path` (relative to the manifest) and `text`.

    Seconds and rate are read from the audio where they are not given; NeMo's names of the fields are understood.

    Raises:
        InputError: no such file, a line that is not such an object, or too many files that are missing or empty.
    """
    path = Path(path)
    return _usable(
        [_utterance(record, path.parent, f"line {line} of {path}") for line, record in _records(path)], path, max_bad
    )


def write_manifest(path: str | os.PathLike[str], utterances: Iterable[Utterance]) -> None:
    """Write JSONL, the paths relative to the manifest's folder where they lie inside; whole or not at all."""
    path = Path(path)
    folder = path.parent.resolve()
    lines = []
    for utterance in utterances:
        record = {key: value for key, value in dataclasses.asdict(utterance).items() if value is not None}
        file = Path(utterance.path).resolve()
        record["path"] = str(file.relative_to(folder)) if file.is_relative_to(folder) else str(file)
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    replace(path, "".join(lines).encode(), parents=True)


def from_librispeech(root: str | os.PathLike[str], split: str, max_bad: float = MAX_BAD) -> list[Utterance]:
    """SPLIT/SPEAKER/CHAPTER with one `*.trans.txt` ("ID TEXT" per line) and ID.flac, .wav, .ogg, .opus or .mp3.

    Raises:
        InputError: no such split, no transcripts in it, or too many files that are missing or unreadable.
    """
    root = Path(root)
    if not (root / split).is_dir():
        raise InputError(f"There is no split {split} in {root}{_near(root, split)}.")
    tables = sorted((root / split).rglob("*.trans.txt"))
    if not tables:
        raise InputError(f"There is no transcript (*.trans.txt) below {root / split}.")
    return _usable([u for table in tables for u in _chapter(table, split)], root / split, max_bad)


def from_ljspeech(root: str | os.PathLike[str], max_bad: float = MAX_BAD) -> list[Utterance]:
    """`metadata.csv` ("ID|text|normalised text" per line) beside `wavs/ID.wav` (or .flac, .ogg, .opus, .mp3).

    Raises:
        InputError: no metadata.csv, or too many files that are missing or unreadable.
    """
    root = Path(root)
    rows = _rows(root / "metadata.csv", "|")
    audios = _audio_files(root / "wavs")
    name = root.resolve().name
    return _usable(
        [
            Utterance(row[0], audios.get(row[0], str(root / "wavs" / f"{row[0]}.wav")), row[-1], 0.0, 0, name, name)
            for row in rows
            if row
        ],
        root,
        max_bad,
    )


def from_folder(
    root: str | os.PathLike[str], table: str | os.PathLike[str], max_bad: float = MAX_BAD
) -> list[Utterance]:
    """A plain folder and a table of it: JSONL as a manifest, or TSV with columns path, text and perhaps speaker.

    A first row that names the columns (any of a manifest's fields, in any order) is understood.

    Raises:
        InputError: no such table, a row without path or text, or too many files that are missing or unreadable.
    """
    root, table = Path(root), Path(table)
    if table.suffix != ".tsv":
        records = list(_records(table))
    else:
        rows = _rows(table, "\t")
        known = {alias for aliases in _ALIASES.values() for alias in aliases}
        named = bool(rows) and len(known.intersection(rows[0])) >= 2
        columns = rows[0] if named else ["path", "text", "speaker"]
        records = [
            (n, dict(zip(columns, row, strict=False)))
            for n, row in enumerate(rows, 1)
            if row and not (named and n == 1)
        ]
    return _usable([_utterance(record, root, f"line {line} of {table}") for line, record in records], table, max_bad)


def from_lhotse_shar(
    folder: str | os.PathLike[str], out: str | os.PathLike[str], max_bad: float = MAX_BAD
) -> list[Utterance]:
    """Unpack a Lhotse Shar folder to FLAC files and a manifest in `out`; a folder unpacked before is taken as it is.

    Raises:
        InputError: lhotse is not installed, or the folder holds no shards.
    """
    manifest = Path(out) / "manifest.jsonl"
    if not manifest.is_file():
        try:
            from lhotse import CutSet
        except ImportError as error:
            raise InputError("Lhotse Shar needs the package lhotse: pip install 'speechkit[lhotse]'.") from error
        if not any(Path(folder).glob("cuts.*.jsonl*")):
            raise InputError(f"{folder} holds no Lhotse Shar (cuts.*.jsonl.gz).")
        Path(out).mkdir(parents=True, exist_ok=True)
        write_manifest(manifest, _unpacked(CutSet.from_shar(in_dir=str(folder)), Path(out)))
    return read_manifest(manifest, max_bad)


def _unpacked(cuts: Any, out: Path) -> Iterator[Utterance]:
    for number, cut in enumerate(cuts):
        path = out / f"{number:07d}.flac"
        rate = int(cut.sampling_rate)
        audio.write(path, cut.load_audio().T, rate)
        text = " ".join(s.text for s in cut.supervisions if s.text)
        speaker = next((s.speaker for s in cut.supervisions), None)
        yield Utterance(str(cut.id), str(path), text, float(cut.duration), rate, speaker, out.name)


def _usable(candidates: Sequence[Utterance], what: object, max_bad: float) -> list[Utterance]:
    return probed(candidates).within(max_bad, str(what))


def _chapter(table: Path, split: str) -> Iterator[Utterance]:
    audios = _audio_files(table.parent)
    for line in _text(table).splitlines():
        name, _, text = line.strip().partition(" ")
        if name:
            path = audios.get(name, str(table.parent / f"{name}.flac"))
            yield Utterance(name, path, text.strip(), 0.0, 0, table.parent.parent.name, split)


def _audio_files(folder: Path) -> dict[str, str]:
    """Stem -> path of the audio files in a folder, listed once."""
    if not folder.is_dir():
        return {}
    return {p.stem: str(p) for p in sorted(folder.iterdir()) if p.suffix.lower() in audio.SUFFIXES}


def _utterance(record: dict[str, Any], base: Path, where: str) -> Utterance:
    values: dict[str, Any] = {}
    for field, aliases in _ALIASES.items():
        values[field] = next((record[a] for a in aliases if record.get(a) not in (None, "")), None)
    if values["path"] is None:
        raise InputError(f"{where} has no path, got the fields {', '.join(map(str, record)) or 'none'}.")
    path = str(values["path"])
    try:
        return Utterance(
            id=str(values["id"] or Path(path).with_suffix("")),
            path=str(base / path),
            text=str(values["text"] or ""),
            seconds=float(values["seconds"] or 0.0),
            rate=int(values["rate"] or 0),
            speaker=None if values["speaker"] is None else str(values["speaker"]),
            split=None if values["split"] is None else str(values["split"]),
            start=None if values["start"] is None else float(values["start"]),
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"{where} has a value that is no number: {error}.") from error


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"Line {number} of {path} is not JSON: {error.msg}.") from error
        if not isinstance(record, dict):
            raise InputError(f"Line {number} of {path} should be a JSON object, got {type(record).__name__}.")
        yield number, record


def _rows(path: Path, delimiter: str) -> list[list[str]]:
    reader = csv.reader(_text(path).splitlines(), delimiter=delimiter, quoting=csv.QUOTE_NONE)
    return [[cell.strip() for cell in row] for row in reader]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read {path} as text: {error}.") from error


def _near(root: Path, name: str) -> str:
    if not root.is_dir():
        return ", which is no folder"
    splits = sorted(p.name for p in root.iterdir() if p.is_dir())
    near = difflib.get_close_matches(name, splits, n=3) or splits[:8]
    return f"; did you mean {', '.join(near)}?" if near else ", which holds no folders"
