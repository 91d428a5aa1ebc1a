"""Texts of recordings that were found as files, from what lies beside them."""

import dataclasses
import functools
from collections.abc import Iterable
from pathlib import Path

from speechkit.data.table import read_lines, read_rows
from speechkit.data.utterance import Utterance

LIBRITTS = ".normalized.txt"  # ID.normalized.txt holds the text of ID.wav


def transcribed(recordings: Iterable[Utterance]) -> list[Utterance]:
    """The recordings, those without a text with the one that LibriSpeech, LibriTTS or LJSpeech keep for them, if any.

    Raises:
        InputError: a transcript is no text.
    """
    beside = functools.cache(_beside)
    found = []
    for one in recordings:
        path = Path(one.path)
        text = one.text or beside(path.parent).get(path.stem, "")
        if not text and (own := path.with_name(path.stem + LIBRITTS)).is_file():
            text = " ".join(read_lines(own)).strip()
        found.append(dataclasses.replace(one, text=text))
    return found


def _beside(folder: Path) -> dict[str, str]:
    """Name of a file without its suffix -> text, of a chapter of LibriSpeech and of LJSpeech's `wavs`."""
    lines = [line.strip().partition(" ") for table in folder.glob("*.trans.txt") for line in read_lines(table)]
    found = {name: text.strip() for name, _, text in lines}
    table = folder.parent / "metadata.csv"
    if folder.name == "wavs" and table.is_file():
        found |= {row[0]: row[-1] for row in read_rows(table, "|") if row}
    return found
