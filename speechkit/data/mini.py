"""The embedded corpus: LibriSpeech in small, synthesised on the machine that needs it."""

import argparse
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from speechkit.data.espeak import Espeak
from speechkit.data.reading import SAMPLE_RATE
from speechkit.data.sentences import sentences
from speechkit.data.synthesis import FORMATS, SUMMARY, Style, Summary, generate, usable_voices
from speechkit.errors import InputError
from speechkit.startup import status

__all__ = ["DEV_VARIANTS", "TEST_VARIANTS", "generate", "main", "prepare", "summaries"]

VERSION = 4  # of what is generated: a new number makes every cached corpus anew
# Whole variants are held out, in all accents, men and women in each.
DEV_VARIANTS = ("Henrique", "Mario", "aunty", "belinda", "f4", "m5", "pablo", "robert")
TEST_VARIANTS = ("Andrea", "Hugo", "Nguyen", "f3", "f5", "grandma", "linda", "m3", "m7", "michel", "paul", "victor")
TRAIN_STYLE = Style(rate=(130, 180), noisy=0.4, snr_db=(8.0, 12.0, 16.0, 20.0, 25.0))
CLEAN_STYLE = Style(rate=(135, 170), pitch=(30, 70))
NOISY_STYLE = replace(CLEAN_STYLE, noisy=1.0, snr_db=(10.0, 15.0, 20.0))
_HELD_OUT = {"dev": DEV_VARIANTS, "test": TEST_VARIANTS}
SPLITS = ("train-mini", "dev-mini", "test-mini", "test-mini-noisy", "test-mini-long")
_LONG = 5  # sentences in a recording of test-mini-long
_EVERY, _SENTENCES = 7, (2, 3, 4, 5)  # of train-mini, one recording in so many has so many sentences, in turn


def prepare(
    cache_dir: str | Path | None = None,
    minutes_train: float = 180,
    seed: int = 0,
    workers: int | None = None,
    dev_utterances: int = 90,
    test_utterances: int = 180,
    rate: int = SAMPLE_RATE,
) -> Path:
    """Makes the corpus once and returns its root, which has the folders `SPLITS`.

    LibriSpeech's own layout, FLAC. No voice and no sentence of dev or test is in train; test-mini-noisy is
    test-mini with noise at 10 to 20 dB, and test-mini-long has its sentences five to a recording. What a killed run
    left incomplete is made anew. SPLIT/summary.json says what there is.

    Args:
        cache_dir: None is `default_cache()`.
        minutes_train: about how much speech to train on.
        workers: processes; None is one per core.
        rate: Hz; each has a corpus of its own. espeak-ng has nothing above 11 kHz.

    Raises:
        InputError: espeak-ng is missing, or the folder cannot be written.
    """
    name = _folder_name(minutes_train, seed, dev_utterances, test_utterances, rate)
    root = Path(cache_dir or default_cache()) / name
    if all((root / split / SUMMARY).is_file() for split in SPLITS):
        return root
    with Espeak() as espeak:
        train = sorted(set(espeak.variants()) - {*DEV_VARIANTS, *TEST_VARIANTS})
        voices = {part: usable_voices(espeak, wanted) for part, wanted in (("train", train), *_HELD_OUT.items())}
    test = list(itertools.islice(sentences(seed, "test"), test_utterances))
    dev = list(itertools.islice(sentences(seed, "dev"), dev_utterances))
    long = [". ".join(test[start : start + _LONG]) for start in range(0, len(test), _LONG)]
    for split, part, texts, hours, style, chapter in (
        ("dev-mini", "dev", dev, None, CLEAN_STYLE, 1),
        ("test-mini", "test", test, None, CLEAN_STYLE, 1),
        ("test-mini-noisy", "test", test, None, NOISY_STYLE, 2),
        ("test-mini-long", "test", long, None, CLEAN_STYLE, 3),
        ("train-mini", "train", _with_paragraphs(sentences(seed, "train")), minutes_train / 60, TRAIN_STYLE, 1),
    ):
        if not (root / split / SUMMARY).is_file():
            generate(texts, root, split, hours, voices[part], workers, seed, style, chapter, rate=rate)
    return root


def summaries(root: Path) -> list[Summary]:
    """What each split of a corpus that `prepare` made has."""
    return [Summary.load(root / split) for split in SPLITS]


def _with_paragraphs(texts: Iterator[str]) -> Iterator[str]:
    """A transducer that hears single sentences alone learns to be silent after the first."""
    for count in itertools.cycle(_SENTENCES):
        yield from itertools.islice(texts, _EVERY - 1)
        yield ". ".join(itertools.islice(texts, count))


def default_cache() -> Path:
    """``$SPEECHKIT_CACHE``, else the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SPEECHKIT_CACHE") or Path(base) / "speechkit")


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m speechkit.data.mini``; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m speechkit.data.mini",
        description="Synthesise speech in LibriSpeech's layout: the embedded corpus, or one split of your texts.",
    )
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument(
        "--minutes", type=float, default=180, help="speech to make (of the embedded corpus: to train on)"
    )
    parser.add_argument(
        "--texts", type=Path, help="English sentences, one per line, numbers spelled out: makes one split of them"
    )
    parser.add_argument("--split", default="train-synthetic", help="name of that split")
    parser.add_argument("--format", choices=sorted(FORMATS), default="flac", help="of that split's files")
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    return status(lambda: _make(chosen))


def _make(chosen: argparse.Namespace) -> None:
    if chosen.texts is None:
        print(prepare(chosen.out, chosen.minutes, chosen.seed, chosen.workers))
        return
    texts, hours = _read_texts(chosen.texts), chosen.minutes / 60
    style = replace(TRAIN_STYLE, rate=(125, 210), pitch=(10, 90), pitch_range=(20, 80))
    made = generate(texts, chosen.out, chosen.split, hours, None, chosen.workers, chosen.seed, style, 1, chosen.format)
    print(f"{made.seconds / 3600:.2f} h, {made.utterances} utterances, {len(made.voices)} voices")


def _folder_name(minutes: float, seed: int, dev: int, test: int, rate: int) -> str:
    return f"mini-v{VERSION}-{minutes:g}min-{dev}-{test}-seed{seed}" + f"-{rate}hz" * (rate != SAMPLE_RATE)


def _read_texts(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the sentences of {path}: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
