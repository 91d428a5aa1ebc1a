"""Word times and confidences, and n-gram language models."""

from math import inf, log, nan
from pathlib import Path

import pytest

from speechkit.asr.decoding.hypothesis import Hypothesis
from speechkit.asr.decoding.lm import NgramScorer
from speechkit.asr.decoding.words import Timing, words
from speechkit.errors import InputError
from speechkit.text import SpacedWords
from tests.asr.toy import TOKENIZER, spoken, transcribe

ARPA = """\\data\\
ngram 1=6
ngram 2=3

\\1-grams:
-2.0\t<unk>
-99\t<s>\t-0.3
-0.6\t</s>
-0.6\tthe\t-0.2
-0.8\tcab\t-0.2
-0.8\tcub\t-0.2

\\2-grams:
-0.1\t<s> the
-0.2\tthe cab
-2.5\tthe cub

\\end\\
"""


class _Pieces(SpacedWords):
    """The part of a SentencePiece tokenizer that words need."""

    vocab_size = 5

    def __init__(self) -> None:
        self.pieces = ["▁the", "▁", "c", "at", "▁sat"]

    def decode(self, ids: list[int]) -> str:
        return "".join(self.pieces[i] for i in ids).replace("▁", " ").strip()


@pytest.fixture
def arpa(tmp_path: Path) -> Path:
    path = tmp_path / "words.arpa"
    path.write_text(ARPA)
    return path


def test_words_last_until_the_next_one_or_the_tail() -> None:
    found = words(
        Hypothesis([0, 1, 2, 3, 4], [0, 2, 3, 4, 20], [log(0.5), log(0.9), log(0.9), log(0.9), log(1.0)], 0.0),
        _Pieces(),  # type: ignore[arg-type]
        Timing(80.0, tail_ms=160.0),
        seconds=1.7,
    )
    assert [(word.text, word.start_s, word.end_s) for word in found] == [
        ("the", 0.0, 0.16),  # the next word starts
        ("cat", 0.16, 0.56),  # step 4 is over at 0.4, and the tail
        ("sat", 1.6, 1.7),  # the audio ends
    ]
    assert [word.confidence for word in found] == pytest.approx([0.5, 0.9, 1.0])


def test_words_of_characters() -> None:
    tokens = TOKENIZER.encode("go  on ")
    found = words(Hypothesis(tokens, [1, 2, 3, 4, 5, 6, 7], [0.0] * 7, 0.0), TOKENIZER, Timing(40.0))
    assert [(word.text, word.start_s) for word in found] == [("go", 0.04), ("on", 0.2)]


@pytest.mark.parametrize("seconds", [0.05, 0.0799, 0.08, 0.4321, 0.5])
def test_no_word_lies_beyond_the_audio(seconds: float) -> None:
    """The last step of a recording may begin after its end."""
    found = words(Hypothesis([0, 4, 0], [0, 1, 6], [0.0] * 3, 0.0), _Pieces(), Timing(80.0), seconds=seconds)  # type: ignore[arg-type]
    assert [word.text for word in found] == ["the", "sat", "the"]
    times = [time for word in found for time in (word.start_s, word.end_s)]
    assert times == sorted(times)
    assert times[-1] <= seconds
    assert times[-1] == pytest.approx(min(seconds, 0.8), abs=1e-3)


def test_a_model_that_gives_no_probability_is_not_confident() -> None:
    for log_probs, confidence in (([nan, -0.1], 0.0), ([1e-9, 0.0], 1.0), ([-inf, 0.0], 0.0)):
        assert words(Hypothesis([2, 3], [0, 1], log_probs, 0.0), _Pieces(), Timing(80.0))[0].confidence == confidence  # type: ignore[arg-type]


@pytest.mark.parametrize(("weight", "bonus"), [(nan, 0.0), (0.5, inf), (-1e30, 0.0)])
def test_the_weight_of_a_language_model_is_a_number(arpa: Path, weight: float, bonus: float) -> None:
    with pytest.raises(InputError, match="the weight and the bonus of a language model should be from -1000 to 1000"):
        NgramScorer(arpa, TOKENIZER, weight, bonus)


def test_no_tokens_no_words() -> None:
    assert words(Hypothesis([], [], [], 0.0), TOKENIZER, Timing(80.0)) == []


@pytest.mark.parametrize("decoder", ["ctc beam", "rnnt beam"])
def test_an_ngram_model_decides_a_near_tie(arpa: Path, decoder: str) -> None:
    pytest.importorskip("flashlight.lib.text.decoder.kenlm")
    near = spoken("the c", {"u": 7.5, "a": 7.0}, "b")
    scorer = NgramScorer(arpa, TOKENIZER, weight=0.5)
    assert transcribe(decoder, near) == "the cub"
    assert transcribe(decoder, near, [scorer]) == "the cab"
    assert transcribe(decoder, near, [NgramScorer(arpa, TOKENIZER, weight=0.0)]) == "the cub"


def test_words_score_as_the_arpa_file_says(arpa: Path) -> None:
    pytest.importorskip("flashlight.lib.text.decoder.kenlm")
    scorer = NgramScorer(arpa, TOKENIZER, weight=1.0, bonus=0.0)
    state, total = scorer.start(), 0.0
    for token in TOKENIZER.encode("the cub xy"):
        gain, state = scorer.score(state, token)
        total += gain
    # the | <s>, cub | the, <unk> with the back-off of cub, </s> after an unknown word
    assert total + scorer.finish(state) == pytest.approx(log(10) * (-0.1 - 2.5 - 0.2 - 2.0 - 0.6), rel=1e-4)


def test_the_entries_of_an_ngram_model_may_be_pieces(tmp_path: Path) -> None:
    pytest.importorskip("flashlight.lib.text.decoder.kenlm")
    lines = ["-2.0\t<unk>", "-99\t<s>", "-1.0\t</s>", "-0.3\ta", "-4.0\tu", "-1.0\tb", "-1.0\tc"]
    path = tmp_path / "pieces.arpa"
    path.write_text(
        f"\\data\\\nngram 1={len(lines)}\nngram 2=1\n\n\\1-grams:\n"
        + "\n".join(lines)
        + "\n\n\\2-grams:\n-0.1\t<s> c\n\n\\end\\\n"
    )
    near = spoken("c", {"u": 7.5, "a": 7.0}, "b")
    assert transcribe("ctc beam", near) == "cub"
    assert transcribe("ctc beam", near, [NgramScorer(path, TOKENIZER, unit="piece")]) == "cab"


def test_files_that_are_no_language_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        NgramScorer(tmp_path / "missing.arpa", TOKENIZER)
    (tmp_path / "text.arpa").write_text("hello\n")
    with pytest.raises(InputError, match="not an ARPA file"):
        NgramScorer(tmp_path / "text.arpa", TOKENIZER)
