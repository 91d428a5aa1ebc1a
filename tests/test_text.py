"""Normalised text, and tokenizers that say what they cannot write."""

import random
from pathlib import Path

import pytest

from speechkit.errors import InputError
from speechkit.text import (
    CharTokenizer,
    SentencePieceTokenizer,
    normalize,
    steps_for_ctc,
    train_characters,
    train_sentencepiece,
)
from speechkit.tokenizers import load_tokenizer
from tests.paths import GOLDENS, needs_goldens

WORDS = "the cat sat on a mat and saw two dogs run over green hills while seven birds sang songs of old".split()


def _texts(count: int = 200) -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=6)) for _ in range(count)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Hello,   WORLD!\n", "hello world"),
        ("Don’t you 'dare', rock 'n' roll", "don't you dare rock n roll"),
        ("naïve café — œuvre", "naive cafe oeuvre"),
        ("well-known snake_case", "well known snake case"),
        ("room 42", "room 42"),
        ("привет", "привет"),
        ("?!", ""),
        ("がんばって、パソコン", "がんばってパソコン"),
        ("か\u3099んばって ﾊﾟｿｺﾝ", "がんばってパソコン"),
        ("한국어, 안녕 café", "한국어 안녕 cafe"),
        ("\u1112\u1161\u11ab", "한"),
        ("a\u3099b", "ab"),  # a mark that is of no kana
    ],
)
def test_normalize(text: str, expected: str) -> None:
    assert normalize(text) == expected
    assert normalize(expected) == expected


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_a_small_corpus_has_fewer_pieces(tmp_path: Path, model_type: str) -> None:
    texts = ["we go home", "the cat is black"] * 3
    tokenizer = train_sentencepiece(texts, tmp_path, 500, model_type)
    assert tokenizer.vocab_size < 100
    assert tokenizer.decode(tokenizer.encode("the black cat")) == "the black cat"


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_pieces_round_trip_and_survive_saving(tmp_path: Path, model_type: str) -> None:
    tokenizer = train_sentencepiece(_texts(), tmp_path, 40, model_type)
    again = load_tokenizer(tmp_path)
    assert tokenizer.vocab_size == len(tokenizer.pieces) <= 40
    for text in _texts(10):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert again.encode(text) == tokenizer.encode(text)
    tokenizer.save(tmp_path / "copy")
    assert load_tokenizer(tmp_path / "copy").pieces == tokenizer.pieces


def test_training_is_deterministic_and_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first = train_sentencepiece(_texts(), tmp_path / "a", 60)
    second = train_sentencepiece(_texts(), tmp_path / "b", 60)
    assert first.pieces == second.pieces
    assert (tmp_path / "a/tokenizer.model").read_bytes() == (tmp_path / "b/tokenizer.model").read_bytes()
    assert capfd.readouterr() == ("", "")


def test_a_small_corpus_gives_fewer_pieces_than_asked(tmp_path: Path) -> None:
    assert train_sentencepiece(_texts(20), tmp_path, 1024).vocab_size < 200


@pytest.mark.parametrize(
    ("texts", "size", "kind"), [([" "], 50, "unigram"), (["a b c d e f"], 3, "bpe"), (["a"], 9, "x")]
)
def test_impossible_training_is_one_sentence(tmp_path: Path, texts: list[str], size: int, kind: str) -> None:
    with pytest.raises(InputError) as raised:
        train_sentencepiece(texts, tmp_path, size, kind)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_characters_round_trip_and_survive_saving(tmp_path: Path) -> None:
    tokenizer = train_characters(_texts(), tmp_path)
    assert tokenizer.pieces[0] == " "
    assert load_tokenizer(tmp_path).pieces == tokenizer.pieces
    assert tokenizer.decode(tokenizer.encode("two old cats")) == "two old cats"


@pytest.mark.parametrize("kind", ["pieces", "characters"])
def test_an_unknown_character_is_named_with_its_text(tmp_path: Path, kind: str) -> None:
    train = train_characters if kind == "characters" else lambda texts, folder: train_sentencepiece(texts, folder, 50)
    tokenizer = train(_texts(), tmp_path)
    with pytest.raises(InputError, match=r"'ж' \(U\+0436\) in the text 'the жук sat'"):
        tokenizer.encode("the жук sat")


def test_ids_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.\.1, got -1\.\.7"):
        CharTokenizer("ab").decode([7, -1])


def test_files_that_are_no_tokenizers_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "characters.json").write_text('{"a": 1}')
    with pytest.raises(InputError, match="list of characters"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(InputError, match=r"tokenizer\.model is not a SentencePiece model"):
        load_tokenizer(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        SentencePieceTokenizer(tmp_path / "missing.model")


def test_ctc_needs_a_blank_between_repeats() -> None:
    assert steps_for_ctc([]) == 0
    assert steps_for_ctc([1, 1, 2, 2, 2]) == 8


@needs_goldens
def test_published_models_keep_their_ids() -> None:
    tokenizer = SentencePieceTokenizer(GOLDENS / "fastconformer" / "tokenizer.model")
    lines = (GOLDENS / "fastconformer" / "tokenizer.vocab").read_text(encoding="utf-8").splitlines()
    assert tokenizer.pieces == [line.split("\t")[0] for line in lines]
