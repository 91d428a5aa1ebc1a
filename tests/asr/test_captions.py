"""Subtitles fit on a screen, in time, and lose no word."""

import re

import numpy as np
import pytest

from speechkit.asr.captions import Captioner, Cue, cues, srt, vtt
from speechkit.asr.decoding.words import Word


def spoken(count: int, seed: int, pause: float = 0.1) -> list[Word]:
    rng, words, at = np.random.default_rng(seed), [], 0.0
    for _ in range(count):
        at += float(rng.exponential(pause))
        end = at + float(rng.uniform(0.1, 0.6))
        words.append(Word("x" * int(rng.integers(1, 13)), round(at, 3), round(end, 3), 1.0))
        at = end
    return words


@pytest.mark.parametrize("pause", [0.0, 0.1, 0.5])
def test_cues_fit_and_hold_every_word_in_order(pause: float) -> None:
    words = spoken(300, seed=1, pause=pause)
    found = cues(words)
    assert " ".join(" ".join(cue.lines) for cue in found).split() == [word.text for word in words]
    for cue, following in zip(found, [*found[1:], None], strict=True):
        assert 1 <= len(cue.lines) <= 2
        assert max(map(len, cue.lines)) <= 42
        assert 0 < cue.end_s - cue.start_s <= 7
        assert following is None or cue.end_s <= following.start_s


def test_cues_end_at_pauses() -> None:
    first = [Word("one", 0.0, 0.3, 1.0), Word("two", 0.4, 0.7, 1.0)]
    second = [Word("three", 1.5, 1.9, 1.0)]
    assert [cue.lines for cue in cues(first + second)] == [["one two"], ["three"]]


def test_a_full_cue_is_cut_at_its_longest_late_pause() -> None:
    starts = [0.5 * i + (0.3 if i >= 7 else 0.0) for i in range(12)]
    words = [Word("abcdefgh", start, start + 0.4, 1.0) for start in starts]
    found = cues(words)
    assert len(" ".join(found[0].lines).split()) == 7


def test_lines_are_balanced() -> None:
    words = [Word(text, i * 0.3, i * 0.3 + 0.3, 1.0) for i, text in enumerate(["abcd"] * 10)]
    assert [len(line) for line in cues(words)[0].lines] == [24, 24]


def test_a_short_cue_stays_for_a_second_where_there_is_time() -> None:
    words = [Word("one", 0.0, 0.3, 1.0), Word("two", 5.0, 5.2, 1.0), Word("three", 5.9, 6.1, 1.0)]
    assert [(cue.start_s, cue.end_s) for cue in cues(words)] == [(0.0, 1.0), (5.0, 5.9), (5.9, 6.9)]


def test_a_word_longer_than_a_line_and_silence_are_shown_as_they_are() -> None:
    assert cues([]) == []
    assert [cue.lines for cue in cues([Word("y" * 60, 0.0, 0.5, 1.0)])] == [["y" * 60]]


def test_cues_come_as_soon_as_they_are_complete() -> None:
    words, captioner = spoken(100, seed=2), Captioner()
    live = [captioner.push(word) for word in words]
    assert sum(map(bool, live)) > 5
    assert [cue for found in live for cue in found] + captioner.flush() == cues(words)
    assert captioner.flush() == []


def test_both_formats_write_the_times_and_text() -> None:
    cue = Cue(3723.0044, 3724.9996, ["fish & <chips>", "please"])
    assert srt(7, cue) == "7\n01:02:03,004 --> 01:02:05,000\nfish & <chips>\nplease\n\n"
    assert vtt(cue) == "01:02:03.004 --> 01:02:05.000\nfish &amp; &lt;chips&gt;\nplease\n\n"
    assert re.match(r"\d\d:\d\d:\d\d,\d\d\d --> ", srt(1, cue).splitlines()[1])
