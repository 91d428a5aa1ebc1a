"""What `speechkit transcribe` is given: recordings, where their text goes, and phrases."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from speechkit import audio
from speechkit.commands.formats import SUFFIXES
from speechkit.errors import InputError
from speechkit.files import replace


class Recording(NamedTuple):
    """A file, or standard input."""

    name: str  # as the user calls it
    path: str  # "-" is standard input
    relative: Path  # for the output folder

    def blocks(self, rate: int, seconds: float, raw_rate: int | None) -> Iterator[np.ndarray]:
        """Its samples at `rate` in pieces of about so many seconds; errors as `audio.blocks`."""
        if self.path == "-" and sys.stdin.isatty():
            raise InputError(
                "standard input is a terminal: send audio through a pipe, as in ffmpeg ... | speechkit ..."
            )
        return audio.blocks(self.path, rate, seconds, raw_rate=raw_rate)


def expand(arguments: Sequence[str]) -> tuple[list[Recording], list[str]]:
    """The recordings that the arguments name, those in folders sorted, and a sentence for each empty folder."""
    recordings, refused = [], []
    for argument in arguments:
        path = Path(argument).expanduser()
        if argument == "-":
            recordings.append(Recording("-", "-", Path("stdin")))
        elif path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in audio.SUFFIXES and p.is_file())
            recordings += [Recording(str(p), str(p), p.relative_to(path)) for p in inside]
            if not inside:
                refused.append(f"{argument} holds no audio files ({', '.join(audio.SUFFIXES)})")
        else:
            recordings.append(Recording(argument, str(path), Path(path.name)))
    return recordings, refused


def targets(recordings: Sequence[Recording], output: str, kind: str) -> dict[Recording, Path]:
    """The file in the output folder for each recording; the folder is made.

    Raises:
        InputError: it cannot be written, or two recordings would share a file.
    """
    folder = Path(output).expanduser()
    found: dict[Path, Recording] = {}
    for recording in recordings:
        target = folder / recording.relative.with_suffix(SUFFIXES[kind])
        if target in found:
            both = f"{found[target].name} and {recording.name}"
            raise InputError(f"{both} would both be written to {target}: transcribe them into different folders")
        found[target] = recording
    try:
        for parent in {folder, *(target.parent for target in found)}:
            parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the output folder {folder} cannot be written: {error.strerror or error}") from None
    if not os.access(folder, os.W_OK):
        raise InputError(f"the output folder {folder} cannot be written: you may not write there")
    return {recording: target for target, recording in found.items()}


def write(target: Path, text: str) -> None:
    """Writes a text so that the file appears whole or not at all; errors as `files.replace`."""
    replace(target, text.encode())


def phrases(hotwords: str | None) -> list[tuple[str, float]] | None:
    """Phrases with their factors, from ``phrase[:factor], ...`` or from a file with one a line (# begins a comment)."""
    if hotwords is None:
        return None
    path = Path(hotwords).expanduser()
    if "," not in hotwords and (path.suffix == ".txt" or os.sep in hotwords or path.is_file()):
        found = [line for line in lines(hotwords) if not line.startswith("#")]
    else:
        found = hotwords.split(",")
    return [_phrase(text) for text in found if text.strip()] or None


def _phrase(text: str) -> tuple[str, float]:
    phrase, colon, factor = text.rpartition(":")
    try:
        return (phrase.strip(), float(factor)) if colon else (text.strip(), 1.0)
    except ValueError:
        return text.strip(), 1.0


def lines(path: str) -> list[str]:
    """The lines of a text file that are not empty."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text: {error}") from None
    return [line.strip() for line in text.splitlines() if line.strip()]
