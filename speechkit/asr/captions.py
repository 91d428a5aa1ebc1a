"""Subtitles: words with times as cues that fit on a screen, in SubRip (SRT) and WebVTT."""

from collections.abc import Iterable
from typing import NamedTuple

from speechkit.asr.decoding.words import Word
from speechkit.text import join_words

LINE = 42  # characters
LINES = 2
LONGEST_S = 7.0
SHORTEST_S = 1.0  # shown longer than it was spoken, as far as the next cue lets it
PAUSE_S = 0.6  # ends a cue
SMALL_PAUSE_S = 0.15  # where a full cue is rather cut


class Cue(NamedTuple):
    """What is shown at once."""

    start_s: float
    end_s: float
    lines: list[str]


class Captioner:
    """Words as cues of at most 2 lines of 42 characters and 7 s, cut at pauses."""

    def __init__(self) -> None:
        self._held: list[Word] = []

    def push(self, word: Word) -> list[Cue]:
        """The cues that are complete now that another word has come."""
        found = []
        if self._held and word.start_s - self._held[-1].end_s >= PAUSE_S:
            found += [_cue(self._held, word.start_s)]
            self._held = []
        while self._held and not _fits([*self._held, word]):
            shown, self._held = _cut(self._held)
            found.append(_cue(shown, (self._held or [word])[0].start_s))
        self._held.append(word)
        return found

    def flush(self) -> list[Cue]:
        """The cue of the words that are left."""
        held, self._held = self._held, []
        return [_cue(held, float("inf"))] if held else []


def cues(words: Iterable[Word]) -> list[Cue]:
    """The cues of a whole recording."""
    captioner = Captioner()
    return [cue for word in words for cue in captioner.push(word)] + captioner.flush()


def _fits(words: list[Word]) -> bool:
    return words[-1].end_s - words[0].start_s <= LONGEST_S and len(_lines([word.text for word in words])) <= LINES


def _cut(words: list[Word]) -> tuple[list[Word], list[Word]]:
    """What of a full cue to show, up to the longest pause in its second half or all, and what to keep."""
    gaps = [(words[i].start_s - words[i - 1].end_s, i) for i in range(len(words) // 2 + 1, len(words))]
    gap, cut = max(gaps, default=(0.0, len(words)))
    cut = cut if gap >= SMALL_PAUSE_S else len(words)
    return words[:cut], words[cut:]


def _cue(words: list[Word], following_s: float) -> Cue:
    """A cue of words, shown for at least a second where the next one leaves the time."""
    start, end = words[0].start_s, words[-1].end_s
    return Cue(start, max(end, min(start + SHORTEST_S, following_s)), _balanced([word.text for word in words]))


def _lines(texts: list[str]) -> list[str]:
    """Words filled into lines; a word longer than a line has a line of its own."""
    lines: list[str] = []
    for text in texts:
        if lines and len(lines[-1]) + 1 + len(text) <= LINE:
            lines[-1] = join_words([lines[-1], text])
        else:
            lines.append(text)
    return lines


def _balanced(texts: list[str]) -> list[str]:
    """One line, or two of like length."""
    if len(_lines(texts)) < LINES:
        return [join_words(texts)]
    splits = ((join_words(texts[:i]), join_words(texts[i:])) for i in range(1, len(texts)))
    return list(min(splits, key=lambda pair: max(map(len, pair)))) if len(texts) > 1 else texts


def srt(number: int, cue: Cue) -> str:
    """The cue as an entry of a SubRip file, numbered from 1."""
    return f"{number}\n{_time(cue.start_s, ',')} --> {_time(cue.end_s, ',')}\n" + "\n".join(cue.lines) + "\n\n"


def vtt(cue: Cue) -> str:
    """The cue as an entry of a WebVTT file, which begins with ``WEBVTT`` and an empty line."""
    text = "\n".join(cue.lines).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f"{_time(cue.start_s, '.')} --> {_time(cue.end_s, '.')}\n{text}\n\n"


def _time(seconds: float, mark: str) -> str:
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d}{mark}{ms % 1000:03d}"
