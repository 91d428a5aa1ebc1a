"""Speech of many voices synthesised from texts into a folder of LibriSpeech's layout, by parallel processes."""

import io
import itertools
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import soundfile
from rich.progress import track

from speechkit.data.espeak import Espeak
from speechkit.data.noise import Wave
from speechkit.data.reading import SAMPLE_RATE, Reading, Style, record, speak, transcript, usable_voices
from speechkit.errors import InputError

SUMMARY = "summary.json"  # in a split's folder, so that the folder under its own name is complete
FORMATS = {"flac": ("FLAC", "PCM_16"), "opus": ("OGG", "OPUS")}
_SHARD = 64  # utterances of one synthesiser; part of what makes the samples what they are
_BABBLERS = 4


@dataclass(frozen=True)
class Summary:
    """What a split has; lies in it as `summary.json`."""

    split: str
    utterances: int
    words: int
    vocabulary: int
    seconds: float
    voices: dict[str, str]  # speaker number -> voice

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads SPLIT/summary.json; `InputError` where it is damaged."""
        try:
            return cls(**json.loads((folder / SUMMARY).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            path = folder / SUMMARY
            raise InputError(f"{path} is damaged ({error}): delete {folder} to have it made anew") from error


def generate(
    texts: Iterable[str],
    out_root: str | Path,
    split: str,
    hours: float | None = None,
    voices: dict[str, int] | None = None,
    workers: int | None = None,
    seed: int = 0,
    style: Style | None = None,
    chapter: int = 1,
    suffix: str = "flac",
    rate: int = SAMPLE_RATE,
) -> Summary:
    """Makes OUT_ROOT/SPLIT/SPEAKER/CHAPTER/*.flac and *.trans.txt.

    The samples depend on the arguments, not on `workers`. The split appears under its name when it is complete.
    Voices take turns, texts come in their order.

    Args:
        texts: English sentences, numbers spelled out; cycled where they do not fill the hours. Punctuation is heard in
            the speech and left out of the transcripts.
        hours: about how much to make; None says every text once.
        voices: voice -> speaker number; None is every voice but whispers.
        workers: processes; None is one per core.
        suffix: ``flac`` or ``opus``.
        rate: Hz; espeak-ng has nothing above 11 kHz.

    Raises:
        InputError: the split is there already, no text, a text that is not English words, a folder that cannot be
            written.
    """
    target = Path(out_root) / split
    if target.exists():
        raise InputError(f"{target} is already there")
    if suffix not in FORMATS:
        raise InputError(f"the format must be one of {', '.join(FORMATS)}, got {suffix!r}")
    style = style or Style()
    if voices is None:
        with Espeak() as espeak:
            voices = usable_voices(espeak)
    shards = _plan(_enough(texts, hours, style), voices, chapter, seed)
    try:
        work = _work_folder(target)
        try:
            job = partial(_make_shard, work, style, seed, suffix, rate)
            seconds = sum(track(_in_order(job, shards, workers), f"speaking {split}", len(shards), disable=_quiet()))
            summary = _summarise(split, shards, seconds)
            (work / SUMMARY).write_text(json.dumps(asdict(summary), indent=1), encoding="utf-8")
            work.replace(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        if not (target / SUMMARY).is_file():  # else another process finished the same split first
            raise InputError(f"cannot write the synthetic speech to {target}: {error}") from error
    return summary


def _enough(texts: Iterable[str], hours: float | None, style: Style) -> list[str]:
    chosen = list[str]()
    if hours is None:
        chosen = list(texts)
    else:
        missing = hours * 3600
        for text in itertools.cycle(texts):
            if missing <= 0:
                break
            chosen.append(text)
            missing -= style.seconds(text)
    if not chosen:
        raise InputError("no text to speak was given")
    for text in chosen:
        transcript(text)  # what is no English sentence is refused before anything is spoken
    return chosen


def _plan(texts: Sequence[str], voices: dict[str, int], chapter: int, seed: int) -> list[list[Reading]]:
    """Deals the texts out to the voices in a drawn order; a shard holds all of a speaker's utterances."""
    names = sorted(voices)
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    shards: list[list[Reading]] = [[]]
    for first, voice in enumerate(order[: len(texts)]):
        if len(shards[-1]) >= _SHARD:
            shards.append([])
        own = texts[first :: len(order)]
        shards[-1] += [Reading(text, voice, voices[voice], chapter, index) for index, text in enumerate(own)]
    return shards


def _summarise(split: str, shards: list[list[Reading]], seconds: float) -> Summary:
    made = [reading for shard in shards for reading in shard]
    words = [word for reading in made for word in reading.text.split()]
    voices = {str(reading.speaker): reading.voice for reading in made}
    return Summary(split, len(made), len(words), len(set(words)), round(seconds, 2), voices)


def _in_order(job: partial[float], shards: list[list[Reading]], workers: int | None) -> Iterator[float]:
    workers = min(workers or _cores(), len(shards))
    if workers == 1:
        yield from map(job, shards)
        return
    # Elsewhere than on Linux a fork is not safe; spawning imports the caller's main module again.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(workers, context, _die_with_parent) as pool:
        try:
            yield from pool.map(job, shards)
        except BrokenProcessPool as error:
            raise InputError(
                f"one of {workers} processes that make the speech was ended from outside, most likely for the memory "
                "that they take together: give fewer of them"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)  # waits for the shards under way, so that nothing is written later
            raise


def _die_with_parent() -> None:
    """A worker of a killed process would wait for ever."""

    def watch() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _make_shard(root: Path, style: Style, seed: int, suffix: str, rate: int, shard: list[Reading]) -> float:
    """Writes the utterances; returns their seconds."""
    container, subtype = FORMATS[suffix]
    recent, samples = list[Wave](), 0
    with Espeak() as espeak:
        for reading in shard:
            # Two generators: with and without noise the speech is the same.
            key = zlib.crc32(f"{reading.voice} {reading.text} {reading.index}".encode())
            speech = speak(espeak, reading, style, np.random.default_rng([seed, key]), rate)
            wave = record(speech, recent, style, np.random.default_rng([seed, key, reading.chapter]), rate)
            recent = [*recent[1 - _BABBLERS :], speech]
            samples += len(wave)
            folder = root / str(reading.speaker) / str(reading.chapter)
            folder.mkdir(parents=True, exist_ok=True)
            encoded = io.BytesIO()  # soundfile would wait for the disk after every file
            soundfile.write(encoded, wave, rate, subtype, format=container)
            (folder / f"{reading.name}.{suffix}").write_bytes(encoded.getvalue())
            with (folder / f"{reading.speaker}-{reading.chapter}.trans.txt").open("a", encoding="utf-8") as lines:
                lines.write(f"{reading.name} {reading.text}\n")
    return samples / rate


def _work_folder(target: Path) -> Path:
    """A new folder beside the target; those that killed runs left are removed after an hour."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for stale in target.parent.glob(f".{target.name}.*"):
        if time.time() - stale.stat().st_mtime > 3600:
            shutil.rmtree(stale, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    work.chmod(0o755)
    return work


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quiet() -> bool:
    return not sys.stderr.isatty()
