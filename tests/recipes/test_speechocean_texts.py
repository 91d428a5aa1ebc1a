"""Sentences to be spoken: written ones, transcripts, documentation."""

import re
from pathlib import Path

import pytest

from recipes.speechocean.texts import common, documentation, main, sentences, transcripts, written
from speechkit.data.reading import transcript


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


def test_every_written_sentence_can_be_spoken_and_comes_once() -> None:
    assert len(written()) > 12_000
    assert len({transcript(sentence) for sentence in written()}) == len(written())


def test_transcripts_are_read_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "1" / "2").mkdir(parents=True)
    (tmp_path / "1" / "2" / "1-2.trans.txt").write_text("1-2-0000 GOOD DAY\n1-2-0001 SO LONG\n")
    assert transcripts(tmp_path) == ["good day", "so long"]
    main([str(tmp_path / "out.txt"), str(tmp_path), "--documentation", "0"])
    lines = (tmp_path / "out.txt").read_text().splitlines()
    assert lines.count("good day") == 3
    assert len(lines) == 3 * (2 + len(written()))
    assert main([str(tmp_path / "out.txt"), str(tmp_path / "nowhere")]) == 2
    assert re.fullmatch(r"error: there are no transcripts .*\n", capsys.readouterr().err)
