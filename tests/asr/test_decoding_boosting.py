"""Boosted phrases win near ties, pay only when they are whole, and are refused when they cannot be written."""

import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from speechkit.asr.ctc import CtcHead
from speechkit.asr.decoding.boosting import PhraseBooster
from speechkit.asr.decoding.ctc_beam import CtcBeam
from speechkit.errors import InputError
from speechkit.text import CharTokenizer, SentencePieceTokenizer, Tokenizer, train_sentencepiece
from speechkit.token_list import ListTokenizer
from tests.asr.toy import TOKENIZER, spoken, transcribe

DECODERS = ["ctc", "rnnt", "ctc beam", "rnnt beam"]
NEAR = spoken("say the c", {"u": 7.0, "a": 6.5}, "b")


def _total(booster: PhraseBooster, tokenizer: Tokenizer, text: str) -> float:
    state, total = booster.start(), 0.0
    for token in tokenizer.encode(text):
        gain, state = booster.score(state, token)
        total += gain
    return total + booster.finish(state)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_phrase_wins_a_near_tie(decoder: str) -> None:
    assert transcribe(decoder, NEAR) == "say the cub"
    assert transcribe(decoder, NEAR, [PhraseBooster(TOKENIZER, ["Cab"], 1.0)]) == "say the cab"
    assert transcribe(decoder, NEAR, [PhraseBooster(TOKENIZER, [("cab", 0.0), "the"], 1.0)]) == "say the cub"


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_broken_phrase_does_not_silence_what_was_said(decoder: str) -> None:
    steps = spoken("say the ca", {"d": 8.0, "b": 5.0}, " run")
    assert transcribe(decoder, steps, [PhraseBooster(TOKENIZER, ["cab", "cable car"], 1.0)]) == "say the cad run"


@pytest.mark.parametrize("decoder", DECODERS)
def test_weight_zero_changes_nothing(decoder: str) -> None:
    rng = random.Random(0)
    letters = [{c: rng.uniform(3, 8) for c in "abc _"} for _ in range(40)]
    steps = spoken(*letters)
    assert transcribe(decoder, steps, [PhraseBooster(TOKENIZER, ["cab", "a b"], 0.0)]) == transcribe(decoder, steps)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("art", 3),
        ("modern art", 3),
        ("art art now", 6),
        ("artist", 0),  # a longer word
        ("start", 0),  # the end of another word
        ("new york", 8),
        ("new yak", 0),
        ("new art", 3),
        ("a new york art", 11),
        ("new new york", 8),
        ("york", 0),
        ("york city", 9),
        ("new york city", 8),  # two phrases share a word: it pays once
    ],
)
def test_only_whole_phrases_pay(text: str, tokens: int) -> None:
    booster = PhraseBooster(TOKENIZER, ["art", "new york", "york city"], 1.5)
    assert _total(booster, TOKENIZER, text) >= 1.5 * tokens - 1e-5
    if text != "new york city":
        assert _total(booster, TOKENIZER, text) == pytest.approx(1.5 * tokens, abs=1e-5)


def test_a_phrase_within_a_phrase_keeps_its_share() -> None:
    booster = PhraseBooster(TOKENIZER, ["new", "new york"])
    assert _total(booster, TOKENIZER, "new york") == pytest.approx(16.0)
    assert _total(booster, TOKENIZER, "new yak") == pytest.approx(6.0)
    assert _total(booster, TOKENIZER, "newer") == pytest.approx(0.0)


def test_phrases_in_pieces_pay_at_word_ends(tmp_path: Path) -> None:
    texts = [" ".join(random.Random(i).choices(["art", "is", "artist", "new", "york", "yes"], k=5)) for i in range(99)]
    tokenizer: SentencePieceTokenizer = train_sentencepiece(texts, tmp_path, 24)
    booster = PhraseBooster(tokenizer, ["New York!", "art"], 1.0)
    assert _total(booster, tokenizer, "new york is art") == pytest.approx(
        len(tokenizer.encode("new york")) + len(tokenizer.encode("art"))
    )
    assert _total(booster, tokenizer, "yes new is yes") == pytest.approx(0.0)


LIST = ListTokenizer(["一", "丁", "七", "万", "he@@", "llo", "art", "sm@@", "ist"])


@pytest.mark.parametrize(
    ("pieces", "gains", "end"),
    [
        ("一 丁 七 万", [2, 2, 0, 0], 0),
        ("一 七 丁 万", [2, -2, 0, 0], 0),
        ("七 一 丁", [0, 2, 2], 0),
        ("一 一 丁 一", [2, 0, 2, 2], -2),
        ("he@@ llo art 万", [2, 2, 2, 0], 0),
        ("he@@ art ist", [2, -2, 0], 0),  # "heart": no phrase begins inside a word
        ("sm@@ art", [0, 0], 0),
        ("sm@@ he@@ llo art", [0, 0, 0, 2], 0),
    ],
)
def test_phrases_in_a_list_of_tokens_keep_their_gain(pieces: str, gains: list[float], end: float) -> None:
    booster = PhraseBooster(LIST, ["一丁", "hello", "art"], 2.0)
    state, found = booster.start(), []
    for piece in pieces.split():
        gain, state = booster.score(state, LIST.pieces.index(piece))
        found.append(gain)
    assert found == pytest.approx(gains)
    assert booster.finish(state) == pytest.approx(end)


def test_a_beam_over_a_list_of_tokens_finds_a_phrase_in_the_midst() -> None:
    head = CtcHead(LIST.vocab_size + 1, LIST.vocab_size)
    head.out.weight.data = torch.eye(LIST.vocab_size + 1)
    head.out.bias.data.zero_()
    steps = torch.zeros(4, LIST.vocab_size + 1)
    for step, heard in enumerate(({"七": 9.0}, {"一": 9.0}, {"七": 7.0, "丁": 6.5}, {"万": 9.0})):
        for piece, logit in heard.items():
            steps[step, LIST.pieces.index(piece)] = logit
    assert LIST.decode(CtcBeam(head)(steps)[0].tokens) == "七一七万"
    assert LIST.decode(CtcBeam(head, scorers=[PhraseBooster(LIST, ["一丁"], 1.0)])(steps)[0].tokens) == "七一丁万"


def test_impossible_phrases_are_named() -> None:
    with pytest.raises(InputError, match=r"2 of 3 phrases .* 'b2b', '!'"):
        PhraseBooster(TOKENIZER, ["fine", "b2b", ("!", 2.0)])


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf"), 1e308])
def test_a_weight_that_is_no_measure_is_refused(weight: float) -> None:
    for phrases, common in ((["fine"], weight), (["fine", ("cab", weight)], 1.0), ([("cab", weight)], 0.0)):
        with pytest.raises(InputError, match=r"should be from 0 to 1000 nats, got .*"):
            PhraseBooster(TOKENIZER, phrases, common)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("phrases", "sentence"),
    [
        ("peter", "given as a list, got the text 'peter'"),
        ([5], "a text and the factor on its weight, got 5"),
        ([None], "got None"),
        ([("ab",)], "got ('ab',)"),
        ([("ab", "2")], "got ('ab', '2')"),
        ([("ab", True)], "got ('ab', True)"),
        (["ab", " "], "a phrase has no text"),
    ],
)
def test_what_is_no_phrase_is_refused(phrases: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        PhraseBooster(CharTokenizer(" abc"), phrases)


def test_phrases_and_factors_may_be_a_mapping() -> None:
    one, other = (PhraseBooster(CharTokenizer(" abc"), phrases) for phrases in ({"ab": 2.0}, [("ab", 2)]))
    assert torch.equal(one.gain, other.gain)
    assert one.phrases == other.phrases == [("ab", 2.0)]


def test_a_cased_vocabulary_keeps_the_case() -> None:
    tokenizer = CharTokenizer(" ABab")
    booster = PhraseBooster(tokenizer, ["Ab"], 1.0)
    assert _total(booster, tokenizer, "Ab") == pytest.approx(2.0)
    assert _total(booster, tokenizer, "ab") == pytest.approx(0.0)


@pytest.mark.parametrize("other", [("a bad", 0.1), ("a bad", 0.0), ("a bag", 0.1), ("ab", 0.1)])
def test_a_further_phrase_never_lowers_what_another_gains(other: tuple[str, float]) -> None:
    def gains(booster: PhraseBooster, text: str) -> list[float]:
        node = booster.initial
        for token in TOKENIZER.encode(text):
            node = int(booster.following[node, token])
        found: list[float] = booster.gain[booster.following[node].long()].tolist()
        return found

    alone, both = PhraseBooster(TOKENIZER, ["bad"]), PhraseBooster(TOKENIZER, ["bad", other])
    for text in ("a b", "a ba", "b", "a ", "a", "ab"):
        assert all(more >= less for more, less in zip(gains(both, text), gains(alone, text), strict=True))
