"""One recorded sentence, and the check that it can be used before anything is trained on it."""

import dataclasses
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from speechkit import audio
from speechkit.errors import InputError
from speechkit.text import UNSPACED, normalize

log = logging.getLogger(__name__)

FEW_BAD = 3  # unusable utterances that even a tiny corpus may have
MAX_BAD = 0.01  # of a larger one
_PER_TASK = 256
_THREADS = 16  # headers are read in parallel for network file systems, where each waits


@dataclasses.dataclass(frozen=True, slots=True)
class Utterance:
    """Audio and what is said in it."""

    id: str
    path: str  # audio file
    text: str
    seconds: float  # of the utterance, which is the whole file unless `start` is given
    rate: int  # sample rate of the file, Hz
    speaker: str | None = None
    split: str | None = None
    start: float | None = None  # seconds into the file; None: the whole file is the utterance

    def wave(self, rate: int) -> np.ndarray:
        """The audio -> (samples,) float32 at `rate`; `InputError` where `audio.read` raises it."""
        if self.start is None:
            return audio.read(self.path, rate)
        return audio.read(self.path, rate, start=self.start, seconds=self.seconds)

    def pieces(self, rate: int, seconds: float) -> Iterator[np.ndarray]:
        """The same in pieces (samples,) of about so many seconds; whole files of any length in bounded memory."""
        if self.start is None:
            yield from audio.blocks(self.path, rate, seconds)
            return
        wave, size = self.wave(rate), max(1, round(seconds * rate))
        yield from (wave[first : first + size] for first in range(0, len(wave), size))


def allowed(count: int, share: float) -> int:
    """How many of so many utterances may be unusable: a share of them, and a few even of a tiny corpus."""
    return max(FEW_BAD, int(share * count))


class Usable(list[Utterance]):
    """The utterances that can be used; `bad` has one sentence for each that cannot."""

    def __init__(self, good: Iterable[Utterance], bad: Iterable[str] = ()) -> None:
        super().__init__(good)
        self.bad = list(bad)


class Report(NamedTuple):
    """What a check let through, and one sentence for each utterance that it did not."""

    good: list[Utterance]
    bad: list[str]

    def within(self, max_bad: float, what: str) -> Usable:
        """The good ones; each bad one is a warning.

        Raises:
            InputError: more than a fraction `max_bad` are bad (3 always may be), or nothing is left.
        """
        for sentence in self.bad[:20]:
            log.warning("skipped: %s", sentence)
        if len(self.bad) > 20:
            log.warning("skipped: %d more utterances of %s", len(self.bad) - 20, what)
        total = len(self.good) + len(self.bad)
        if len(self.bad) > allowed(total, max_bad):
            raise InputError(
                f"{len(self.bad)} of {total} utterances of {what} cannot be used, more than the limit of "
                f"{allowed(total, max_bad)}; the first: {self.bad[0]}"
            )
        if not self.good:
            raise InputError(f"{what} has no utterance that can be used" + (f": {self.bad[0]}" if self.bad else "."))
        return Usable(self.good, self.bad)


def probed(candidates: Sequence[Utterance]) -> Report:
    """Sees that the files are there and reads the headers of those whose seconds or rate are not known (0)."""
    return _sorted(candidates, _probe, _THREADS)


def normalized(utterances: Sequence[Utterance]) -> Report:
    """Texts as recognition is trained on them (`text.normalize`); a text that this would empty or maim is bad.

    Punctuation goes silently; a letter or digit that the English alphabet cannot spell does not.
    """
    lost = _lost_characters(utterance.text for utterance in utterances)

    def clean(utterance: Utterance) -> Utterance | str:
        unknown = sorted(lost.intersection(utterance.text))
        text = normalize(utterance.text)
        if unknown:
            return f"the text of {utterance.id} has unknown characters: {' '.join(unknown[:10])} ({utterance.path})"
        return (
            dataclasses.replace(utterance, text=text)
            if text
            else f"the text of {utterance.id} is empty ({utterance.path})"
        )

    return _sorted(utterances, clean)


def _lost_characters(texts: Iterable[str]) -> set[str]:
    """Letters and digits without a spelling in a to z, of scripts with spaces between words."""
    seen: set[str] = set()
    for text in texts:
        seen.update(text)
    return {c for c in seen if c.isalnum() and not re.fullmatch(f"[a-z{UNSPACED}]+", normalize(c))}


def _probe(candidate: Utterance) -> Utterance | str:
    try:
        if candidate.seconds > 0 and candidate.rate > 0:
            size = os.stat(candidate.path).st_size  # noqa: PTH116 - a hundred thousand files
            return candidate if size else f"{candidate.path} is empty (0 bytes)."
        found = audio.info(candidate.path)
        if found.frames == 0:
            return f"{candidate.path} holds no samples."
        seconds = candidate.seconds or found.seconds - (candidate.start or 0.0)
        if seconds <= 0:
            return f"{candidate.id} starts at {candidate.start} s, but {candidate.path} has {found.seconds:.2f} s."
        return dataclasses.replace(candidate, seconds=seconds, rate=found.rate)
    except InputError as error:
        return str(error)
    except OSError as error:
        return f"Cannot read {candidate.path}: {error.strerror or error}."
    except ValueError as error:  # a name with NUL or half a character
        return f"There is no file {candidate.path!r}: {error}."


def _sorted(candidates: Sequence[Utterance], check: Callable[[Utterance], Utterance | str], threads: int = 1) -> Report:
    report = Report([], [])
    # A task per file would be a hundred thousand fights for the interpreter's lock: minutes on a machine of many cores.
    parts = [candidates[i : i + _PER_TASK] for i in range(0, len(candidates), _PER_TASK)]
    with ThreadPoolExecutor(threads) as pool:
        for results in pool.map(lambda part: [check(candidate) for candidate in part], parts):
            for result in results:
                report.bad.append(result) if isinstance(result, str) else report.good.append(result)
    return report
