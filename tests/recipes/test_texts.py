"""Sentences out of documentation."""

from pathlib import Path

from recipes.librispeech.texts import common, documentation, sentences


def test_plain_sentences_are_kept_and_code_is_not() -> None:
    text = "Return the well-known value of this, please. Calls foo_bar(x).\n\nSets maxValue to a limit now! It is ok."
    assert list(sentences(text)) == ["return the well known value of this please", "it is ok"]


def test_rare_words_drop_their_sentence() -> None:
    assert common(["a b c", "a b c", "a b d", "a c b"], least=2) == ["a b c", "a c b"]


def test_docstrings_are_found_and_broken_files_passed_over(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text('"""Module."""\ndef f():\n    """Function."""\n')
    (tmp_path / "bad.py").write_text("def (:\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "hidden.py").write_text('"""Test."""\n')
    assert [text for text in documentation([tmp_path]) if text] == ["Module.", "Function."]
