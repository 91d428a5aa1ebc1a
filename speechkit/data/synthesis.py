"""Speech of many voices synthesised from texts into a folder of LibriSpeech's layout, by parallel processes."""

import io
import itertools
import json
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import soundfile
import soxr
from rich.progress import track

from speechkit.data.espeak import Espeak
from speechkit.data.noise import Wave, make_babble, make_noise, mix, rms
from speechkit.errors import InputError

SAMPLE_RATE = 16000
SUMMARY = "summary.json"  # in a split's folder, so that the folder under its own name is complete
FORMATS = {"flac": ("FLAC", "PCM_16"), "opus": ("OGG", "OPUS")}
WHISPERS = frozenset({"whisper", "whisperf"})  # no pitch at all: 36 % periodic where the other voices have 50-95 %
FIRST_SPEAKER = 20000  # above every LibriSpeech number
_SHARD = 64  # utterances of one synthesiser; part of what makes the samples what they are
_BABBLERS = 4
_PUNCTUATION = str.maketrans({"’": "'", "-": " ", "—": " ", **dict.fromkeys('.,;:!?"()', "")})


@dataclass(frozen=True)
class Style:
    """What is drawn for each utterance, uniformly from (low, high).

    Attributes:
        rate: words per minute.
        pitch: espeak-ng's 0 to 100, in the voice's own range; `pitch_range`: how much it moves.
        level_db: RMS of the speech, full scale = 0.
        floor_db: RMS of the room tone that every utterance has, for digital silence is no recording.
        silence_s: before the speech and, drawn again, after it.
        noisy: probability of noise; `kinds`: what noise; `snr_db`: its ratio, one of these.
    """

    rate: tuple[int, int] = (140, 190)
    pitch: tuple[int, int] = (25, 75)
    pitch_range: tuple[int, int] = (30, 70)
    level_db: tuple[float, float] = (-28.0, -20.0)
    floor_db: tuple[float, float] = (-72.0, -60.0)
    silence_s: tuple[float, float] = (0.1, 0.3)
    noisy: float = 0.0
    kinds: tuple[str, ...] = ("white", "pink", "brown", "hum", "babble")
    snr_db: tuple[float, ...] = (5.0, 10.0, 15.0, 20.0)

    def seconds(self, text: str) -> float:
        """Roughly how long a text will be."""
        return len(text) * 9 / (sum(self.rate) / 2) + sum(self.silence_s)


@dataclass(frozen=True)
class Reading:
    """One file to make: a text read by a voice."""

    text: str  # upper case
    voice: str
    speaker: int
    chapter: int
    index: int

    @property
    def name(self) -> str:
        return f"{self.speaker}-{self.chapter}-{self.index:04d}"


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
        """Reads SPLIT/summary.json."""
        return cls(**json.loads((folder / SUMMARY).read_text(encoding="utf-8")))


def usable_voices(espeak: Espeak, variants: Iterable[str] | None = None) -> dict[str, int]:
    """Voice -> speaker number, of every accent with the given variants (None: all), less the whispers."""
    numbers = {voice: FIRST_SPEAKER + i for i, voice in enumerate(espeak.voices())}
    wanted = (set(espeak.variants()) if variants is None else set(variants)) - WHISPERS
    return {voice: number for voice, number in numbers.items() if voice.partition("+")[2] in wanted}


def transcript(text: str) -> str:
    """Upper case words as LibriSpeech has them.

    Raises:
        InputError: digits or letters that English words do not have.
    """
    clean = " ".join(text.translate(_PUNCTUATION).upper().split())
    if not re.fullmatch(r"[A-Z' ]*[A-Z][A-Z' ]*", clean):
        raise InputError(f"a text to speak must be English words, numbers spelled out, got {text!r}")
    return clean


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
) -> Summary:
    """Makes OUT_ROOT/SPLIT/SPEAKER/CHAPTER/*.flac and *.trans.txt.

    The samples depend on the arguments, not on `workers`. The split appears under its name when it is complete.
    Voices take turns, texts come in their order.

    Args:
        texts: English sentences, numbers spelled out; cycled where they do not fill the hours.
        hours: about how much to make; None says every text once.
        voices: voice -> speaker number; None is every voice but whispers.
        workers: processes; None is one per core.
        suffix: ``flac`` or ``opus``.

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
            job = partial(_make_shard, work, style, seed, suffix)
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
        chosen = [transcript(text) for text in texts]
    else:
        missing = hours * 3600
        for text in itertools.cycle(texts):
            if missing <= 0:
                break
            chosen.append(transcript(text))
            missing -= style.seconds(chosen[-1])
    if not chosen:
        raise InputError("no text to speak was given")
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


def _make_shard(root: Path, style: Style, seed: int, suffix: str, shard: list[Reading]) -> float:
    """Writes the utterances; returns their seconds."""
    container, subtype = FORMATS[suffix]
    recent, samples = list[Wave](), 0
    with Espeak() as espeak:
        for reading in shard:
            # Two generators: with and without noise the speech is the same.
            key = zlib.crc32(f"{reading.voice} {reading.text} {reading.index}".encode())
            speech = _speak(espeak, reading, style, np.random.default_rng([seed, key]))
            wave = _record(speech, recent, style, np.random.default_rng([seed, key, reading.chapter]))
            recent = [*recent[1 - _BABBLERS :], speech]
            samples += len(wave)
            folder = root / str(reading.speaker) / str(reading.chapter)
            folder.mkdir(parents=True, exist_ok=True)
            encoded = io.BytesIO()  # soundfile would wait for the disk after every file
            soundfile.write(encoded, wave, SAMPLE_RATE, subtype, format=container)
            (folder / f"{reading.name}.{suffix}").write_bytes(encoded.getvalue())
            with (folder / f"{reading.speaker}-{reading.chapter}.trans.txt").open("a", encoding="utf-8") as lines:
                lines.write(f"{reading.name} {reading.text}\n")
    return samples / SAMPLE_RATE


def _speak(espeak: Espeak, reading: Reading, style: Style, rng: np.random.Generator) -> Wave:
    """Speech at its level between two silences, 16 kHz."""
    rate, pitch, spread = (
        int(rng.integers(low, high + 1)) for low, high in (style.rate, style.pitch, style.pitch_range)
    )
    pcm = espeak.say(reading.text.lower(), reading.voice, rate, pitch, spread)
    loud = np.flatnonzero(np.abs(pcm.astype(np.int32)) > 100)
    if len(loud) == 0:
        raise InputError(f"the voice {reading.voice} says nothing for {reading.text!r}")
    speech = pcm[loud[0] : loud[-1] + 1].astype(np.float32) / 32768
    speech = soxr.resample(speech, espeak.sample_rate, SAMPLE_RATE)
    speech *= np.float32(10 ** (rng.uniform(*style.level_db) / 20) / max(rms(speech), 1e-6))
    before, after = (int(rng.uniform(*style.silence_s) * SAMPLE_RATE) for _ in range(2))
    return np.pad(speech, (before, after))


def _record(speech: Wave, others: list[Wave], style: Style, rng: np.random.Generator) -> Wave:
    """Adds the room tone and perhaps noise."""
    tone = np.float32(10 ** (rng.uniform(*style.floor_db) / 20))
    wave = speech + tone * make_noise("white", len(speech), rng)
    if rng.random() < style.noisy:
        kind, snr_db = str(rng.choice(style.kinds)), float(rng.choice(style.snr_db))
        if kind == "babble" and len(others) < 2:
            kind = "pink"
        babble = kind == "babble"
        noise = make_babble(others, len(wave), rng) if babble else make_noise(kind, len(wave), rng)
        wave = mix(wave, noise, snr_db)
    return wave * np.float32(min(1, 0.98 / max(float(np.abs(wave).max()), 1e-6)))


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
