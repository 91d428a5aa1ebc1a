"""Lists of tokens: characters of scripts without spaces, and pieces of words of others."""

from pathlib import Path

import pytest

from speechkit.errors import InputError
from speechkit.text import join_words, normalize
from speechkit.token_list import ListTokenizer, train_list
from speechkit.tokenizers import load_tokenizer

TOKENS = ["<blank>", "<s>", "</s>", "我", "们", "he@@", "llo", "l@@", "o", "hello", "wor@@", "ld", "<unk>"]


def test_characters_stand_together_and_words_apart() -> None:
    tokenizer = ListTokenizer(TOKENS)
    ids = tokenizer.encode("我们 hello 我 world")
    assert [TOKENS[i] for i in ids] == ["我", "们", "hello", "我", "wor@@", "ld"]
    assert tokenizer.decode(ids) == "我们 hello 我 world"
    assert tokenizer.decode([1, *ids, 2]) == "我们 hello 我 world", "marks are no text"
    assert tokenizer.groups([1, *ids, 2]) == [[1], [2], [3], [4], [5, 6]]


def test_a_word_is_put_together_as_it_was_given_or_of_the_longest_pieces(tmp_path: Path) -> None:
    assert [TOKENS[i] for i in ListTokenizer(TOKENS).encode("hellllo")] == ["he@@", "l@@", "l@@", "llo"]
    given = ListTokenizer(TOKENS, {"helllo": ["he@@", "l@@", "llo"], "none": ["n@@", "one"]})
    assert [TOKENS[i] for i in given.encode("helllo")] == ["he@@", "l@@", "llo"]
    given.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert isinstance(again, ListTokenizer)
    assert again.pieces == TOKENS
    assert again.words == given.words


@pytest.mark.parametrize(
    ("tokens", "word", "pieces"),
    [
        ("hel@@ he@@ llo l", "hello", "he@@ llo"),  # nothing goes on from "hel"
        ("abc@@ ab@@ cd@@ e", "abcde", "ab@@ cd@@ e"),
        ("abc@@ d@@ e@@ f ab@@ cdef", "abcdef", "ab@@ cdef"),  # fewer than with the longest one
        ("a@@ ab@@ cd bcd", "abcd", "ab@@ cd"),  # of two ways the longest piece first
    ],
)
def test_a_word_has_as_few_pieces_as_can_be(tokens: str, word: str, pieces: str) -> None:
    tokenizer = ListTokenizer(tokens.split())
    assert [tokenizer.pieces[i] for i in tokenizer.encode(word)] == pieces.split()


def test_what_has_no_token_is_named() -> None:
    with pytest.raises(InputError, match="no piece for '你'"):
        ListTokenizer(TOKENS).encode("我你")
    with pytest.raises(InputError, match="no piece for 'x'"):
        ListTokenizer(TOKENS).encode("hexo")
    with pytest.raises(InputError, match="no piece for 'x'"):
        ListTokenizer(["hel@@", "he@@", "ll@@", "o"]).encode("hellxo")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not a list of tokens"),
        ("{}", "should hold a list"),
        ("[1]", "should hold a list"),
        ("[]", "different ones"),
        ('["a", "a"]', "different ones"),
    ],
)
def test_a_damaged_list_is_one_sentence(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "tokens.json").write_text(content)
    with pytest.raises(InputError, match=reason):
        load_tokenizer(tmp_path)


def test_a_list_is_learnt_of_texts(tmp_path: Path) -> None:
    texts = [normalize("今天 天气 很好"), "hello 天 to"]
    tokenizer = train_list(texts, tmp_path)
    assert [tokenizer.decode(tokenizer.encode(text)) for text in texts] == ["今天天气很好", "hello 天 to"]
    assert load_tokenizer(tmp_path).pieces == tokenizer.pieces
    with pytest.raises(InputError, match="all of them are empty"):
        train_list([" "], tmp_path)


def test_spaces_are_where_scripts_have_them() -> None:
    assert normalize("甚至 出现 Hello，World 交易") == "甚至出现 hello world 交易"
    assert join_words(["我", "们", "a", "b", "我"]) == "我们 a b 我"
    assert join_words([]) == ""
    assert join_words(["", "a", ""]) == "a"
