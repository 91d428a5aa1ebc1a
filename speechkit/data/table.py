"""Tables of utterances, JSONL and TSV: rows to utterances and back."""

import csv
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from speechkit.data.utterance import MAX_BAD, Usable, Utterance, probed
from speechkit.errors import InputError
from speechkit.files import replace

LARGEST = 1_000_000  # seconds or samples a second: what no recording has

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


def read_manifest(path: str | os.PathLike[str], max_bad: float = MAX_BAD) -> Usable:
    """Read JSONL: one object per line with at least `path` (relative to the manifest) and `text`.

    Seconds and rate are read from the audio where they are not given; NeMo's names of the fields are understood.

    Raises:
        InputError: no such file, a line that is not such an object, or too many files that are missing or empty.
    """
    path = Path(path)
    found = [_utterance(record, path.parent, f"line {line} of {path}") for line, record in _records(path)]
    return probed(found).within(max_bad, str(path))


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


def from_folder(root: str | os.PathLike[str], table: str | os.PathLike[str], max_bad: float = MAX_BAD) -> Usable:
    """A plain folder and a table of it: JSONL as a manifest, or TSV with columns path, text and perhaps speaker.

    A first row that names the columns (any of a manifest's fields, in any order) is understood.

    Raises:
        InputError: no such table, a row without path or text, or too many files that are missing or unreadable.
    """
    root, table = Path(root), Path(table)
    if table.suffix != ".tsv":
        records = list(_records(table))
    else:
        rows = read_rows(table, "\t")
        known = {alias for aliases in _ALIASES.values() for alias in aliases}
        named = bool(rows) and len(known.intersection(rows[0])) >= 2
        columns = rows[0] if named else ["path", "text", "speaker"]
        records = [
            (n, dict(zip(columns, row, strict=False)))
            for n, row in enumerate(rows, 1)
            if row and not (named and n == 1)
        ]
    found = [_utterance(record, root, f"line {line} of {table}") for line, record in records]
    return probed(found).within(max_bad, str(table))


def read_rows(path: Path, delimiter: str) -> list[list[str]]:
    """The cells of each line, without the spaces around them; raises as `read_lines`."""
    reader = csv.reader(read_lines(path), delimiter=delimiter, quoting=csv.QUOTE_NONE)
    try:
        return [[cell.strip() for cell in row] for row in reader]
    except csv.Error as error:
        raise InputError(f"Line {reader.line_num} of {path} cannot be read: {error}.") from error


def read_lines(path: Path) -> list[str]:
    """The lines of a text file in UTF-8; only line feeds separate them, for texts may hold U+2028 and its like.

    Raises:
        InputError: no such file, or one that is no text.
    """
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path}.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read {path} as text: {error}.") from error


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"Line {number} of {path} is not JSON: {getattr(error, 'msg', error)}.") from error
        if not isinstance(record, dict):
            raise InputError(f"Line {number} of {path} should be a JSON object, got {type(record).__name__}.")
        yield number, record


def _utterance(record: dict[str, Any], base: Path, where: str) -> Utterance:
    values: dict[str, Any] = {}
    for field, aliases in _ALIASES.items():
        values[field] = next((record[a] for a in aliases if record.get(a) not in (None, "")), None)
    if values["path"] is None:
        raise InputError(f"{where} has no path, got the fields {', '.join(map(str, record)) or 'none'}.")
    path = str(values["path"])
    return Utterance(
        id=str(values["id"] or Path(path).with_suffix("")),
        path=str(base / path),
        text=str(values["text"] or ""),
        seconds=_number(values["seconds"], "seconds", where) or 0.0,
        rate=int(_number(values["rate"], "rate", where) or 0),
        speaker=None if values["speaker"] is None else str(values["speaker"]),
        split=None if values["split"] is None else str(values["split"]),
        start=_number(values["start"], "start", where),
    )


def _number(value: Any, field: str, where: str) -> float | None:
    if value is None:
        return None
    try:
        number = float("nan" if isinstance(value, bool) else value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not 0 <= number <= LARGEST:
        raise InputError(f"{where} has a value that is no number from 0 to {LARGEST}: {field} is {str(value)[:50]!r}.")
    return number
