"""What `speechkit transcribe` is given: recordings, where their text goes, and phrases."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from speechkit import audio
from speechkit.commands.formats import SUFFIXES
from speechkit.errors import InputError
from speechkit.files import replace
from speechkit.reader import check_rate


class Recording(NamedTuple):
    """A file, or standard input."""

    name: str  # as the user calls it
    path: str  # "-" is standard input
    relative: Path  # for the output folder

    def blocks(self, rate: int, seconds: float, raw_rate: int | None) -> Iterator[np.ndarray]:
        """Its samples at `rate` in pieces of about so many seconds; errors as `audio.blocks`."""
        if self.path == "-" and (sys.stdin is None or sys.stdin.isatty()):
            state = "closed" if sys.stdin is None else "a terminal"
            raise InputError(f"standard input is {state}: send audio through a pipe, as in ffmpeg ... | speechkit ...")
        if raw_rate is not None:
            check_rate(raw_rate, self.name)
        with _opened(self.path) as source:
            yield from audio.blocks(source, rate, seconds, raw_rate=raw_rate)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[str | BinaryIO]:
    """The path, or the open file where libsndfile would not find it by its name, which is no text.

    Standard input is opened once more: Python fails at its end when a thread still reads `sys.stdin`.
    """
    if path == "-" and (number := _descriptor(sys.stdin)) is not None:
        with os.fdopen(os.dup(number), "rb") as file:
            yield file
        return
    try:
        path.encode()
    except UnicodeEncodeError:
        if _is(Path.is_file, Path(path)):
            with _readable(path) as file:
                yield file
            return
    yield path


def _descriptor(stream: Any) -> int | None:
    """Of an open file; none where a program has put something else there."""
    try:
        return int(stream.fileno())
    except OSError:
        return None


def _readable(path: str) -> BinaryIO:
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror or error}.") from None


def expanded(name: str) -> Path:
    """A path in which ~ is somebody's home; as it is where there is no such user."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def _is(kind: Callable[[Path], bool], path: Path) -> bool:
    """Whether there is something of a kind; names that are too long name nothing."""
    try:
        return kind(path)
    except OSError:
        return False


def expand(arguments: Sequence[str]) -> tuple[list[Recording], list[str]]:
    """The recordings that the arguments name, those in folders sorted, and a sentence for each empty folder."""
    recordings, refused = [], []
    for argument in arguments:
        path = expanded(argument)
        if argument == "-":
            recordings.append(Recording("-", "-", Path("stdin")))
        elif _is(Path.is_dir, path):
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
    folder = expanded(output)
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
    path = expanded(hotwords)
    if "," not in hotwords and (path.suffix == ".txt" or os.sep in hotwords or _is(Path.is_file, path)):
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
        text = expanded(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text: {error}") from None
    return [line.strip() for line in text.splitlines() if line.strip()]
