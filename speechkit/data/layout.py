"""Folder layouts that become utterances: LibriSpeech, LJSpeech and Lhotse Shar."""

import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speechkit import audio
from speechkit.data.table import read_lines, read_manifest, read_rows, write_manifest
from speechkit.data.utterance import MAX_BAD, Usable, Utterance, probed
from speechkit.errors import InputError


def from_librispeech(root: str | os.PathLike[str], split: str, max_bad: float = MAX_BAD) -> Usable:
    """SPLIT/SPEAKER/CHAPTER with one `*.trans.txt` ("ID TEXT" per line) and ID.flac, .wav, .ogg, .opus or .mp3.

    Raises:
        InputError: no such split, no transcripts in it, or too many files that are missing or unreadable.
    """
    root = Path(root)
    if not (root / split).is_dir():
        raise InputError(f"There is no split {split} in {root}{nearest(root, split)}.")
    tables = sorted((root / split).rglob("*.trans.txt"))
    if not tables:
        raise InputError(f"There is no transcript (*.trans.txt) below {root / split}.")
    found = [utterance for table in tables for utterance in _chapter(table, split)]
    return probed(found).within(max_bad, str(root / split))


def from_ljspeech(root: str | os.PathLike[str], max_bad: float = MAX_BAD) -> Usable:
    """`metadata.csv` ("ID|text|normalised text" per line) beside `wavs/ID.wav` (or .flac, .ogg, .opus, .mp3).

    Raises:
        InputError: no metadata.csv, or too many files that are missing or unreadable.
    """
    root = Path(root)
    rows = read_rows(root / "metadata.csv", "|")
    audios = _audio_files(root / "wavs")
    name = root.resolve().name
    found = [
        Utterance(row[0], audios.get(row[0], str(root / "wavs" / f"{row[0]}.wav")), row[-1], 0.0, 0, name, name)
        for row in rows
        if row
    ]
    return probed(found).within(max_bad, str(root))


def from_lhotse_shar(folder: str | os.PathLike[str], out: str | os.PathLike[str], max_bad: float = MAX_BAD) -> Usable:
    """Unpack a Lhotse Shar folder to FLAC files and a manifest in `out`; a folder unpacked before is taken as it is.

    Raises:
        InputError: lhotse is not installed, or the folder holds no shards, or damaged ones.
    """
    manifest = Path(out) / "manifest.jsonl"
    if not manifest.is_file():
        try:
            from lhotse import CutSet
        except ImportError as error:
            raise InputError("Lhotse Shar needs the package lhotse: pip install 'speechkit[lhotse]'.") from error
        if not any(Path(folder).glob("cuts.*.jsonl*")):
            raise InputError(f"{folder} holds no Lhotse Shar (cuts.*.jsonl.gz).")
        try:
            Path(out).mkdir(parents=True, exist_ok=True)
            write_manifest(manifest, _unpacked(CutSet.from_shar(in_dir=str(folder)), Path(out)))
        except InputError:
            raise
        except Exception as error:  # lhotse lets those of the formats that it reads through
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise InputError(f"{folder} cannot be unpacked to {out}: {reason}") from error
    return read_manifest(manifest, max_bad)


def nearest(root: Path, name: str) -> str:
    """The end of a sentence about a split that is not there: which names are like it."""
    if not root.is_dir():
        return ", which is no folder"
    splits = sorted(p.name for p in root.iterdir() if p.is_dir())
    near = difflib.get_close_matches(name, splits, n=3) or splits[:8]
    return f"; did you mean {', '.join(near)}?" if near else ", which holds no folders"


def _unpacked(cuts: Any, out: Path) -> Iterator[Utterance]:
    for number, cut in enumerate(cuts):
        path = out / f"{number:07d}.flac"
        rate = int(cut.sampling_rate)
        audio.write(path, cut.load_audio().T, rate)
        text = " ".join(s.text for s in cut.supervisions if s.text)
        speaker = next((s.speaker for s in cut.supervisions), None)
        yield Utterance(str(cut.id), str(path), text, float(cut.duration), rate, speaker, out.name)


def _chapter(table: Path, split: str) -> Iterator[Utterance]:
    audios = _audio_files(table.parent)
    for line in read_lines(table):
        name, _, text = line.strip().partition(" ")
        if name:
            path = audios.get(name, str(table.parent / f"{name}.flac"))
            yield Utterance(name, path, text.strip(), 0.0, 0, table.parent.parent.name, split)


def _audio_files(folder: Path) -> dict[str, str]:
    """Stem -> path of the audio files in a folder, listed once."""
    if not folder.is_dir():
        return {}
    return {p.stem: str(p) for p in sorted(folder.iterdir()) if p.suffix.lower() in audio.SUFFIXES}
