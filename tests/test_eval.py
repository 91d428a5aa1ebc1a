"""`speechkit eval` from its command line to what it writes."""

import json
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from speechkit import audio, eval, hub
from speechkit.commands.loading import recogniser
from speechkit.errors import InputError
from tests.asr import tiny

TEXTS = ["a bad cab", "fed a hag", "a bed", "deaf"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.release(tmp_path_factory.mktemp("model") / "release")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A manifest of four utterances."""
    records = []
    for i, text in enumerate(TEXTS):
        audio.write(tmp_path / f"{i}.wav", tiny.babble(0.8 + i / 3, seed=i), tiny.RATE)
        records.append({"id": f"u{i}", "path": f"{i}.wav", "text": text})
    manifest = tmp_path / "test.jsonl"
    manifest.write_text("\n".join(map(json.dumps, records)))
    return manifest


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["speechkit eval", "device=cpu", *map(str, words)])
    eval.main()


def scores(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "scores.json").read_text())
    return found


def test_scores_a_table_and_a_picture_are_written(
    model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(monkeypatch, f"model={model}", f"data.test=[{corpus}]", f"out={out}")
    found = scores(out)
    assert found["skipped"] == {str(corpus): []}
    assert [(s["decoder"], s["latency_ms"], s["mode"]) for s in found["scores"]] == [
        (decoder, latency, mode)
        for decoder in ("rnnt", "ctc") for latency in (80, 0) for mode in ("offline", "streaming")
    ]  # fmt: skip
    for s in found["scores"]:
        assert s["words"] == sum(len(text.split()) for text in TEXTS)
        assert s["seconds"] == pytest.approx(sum(0.2 * round((0.8 + i / 3) / 0.2) for i in range(4)))
        assert s["delay"] is None or set(s["delay"]) == {"mean", "p50", "p90", "words"}
    pairs = zip(found["scores"][::2], found["scores"][1::2], strict=True)
    assert all(offline["wer"] == streaming["wer"] for offline, streaming in pairs)
    assert (out / "wer.png").read_bytes()[:4] == b"\x89PNG"
    assert "rnnt" in (out / "scores.txt").read_text()
    assert str(out) in capsys.readouterr().out


def test_a_part_can_be_scored(model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["limit=2", "latencies_ms=[0]", "decoders=[ctc]", "modes=[offline]", "beam=3"]
    run(monkeypatch, f"model={model}", f"data.test=[{corpus}]", f"out={tmp_path / 'out'}", *words)
    found = scores(tmp_path / "out")["scores"]
    assert [(s["beam"], s["latency_ms"], s["words"]) for s in found] == [(1, 0, 6), (3, 0, 6)]


def test_broken_files_are_named_and_counted(
    model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (corpus.parent / "1.wav").unlink()
    broken = corpus.parent / "2.wav"
    broken.write_bytes(b"RIFF, but no more")
    soundfile.write(corpus.parent / "3.wav", np.full(16000, np.nan), 16000, subtype="FLOAT")  # its header is good
    words = ["decoders=[ctc]", "modes=[offline]"]
    run(monkeypatch, f"model={model}", f"data.test=[{corpus}]", f"out={tmp_path / 'out'}", *words)
    skipped = scores(tmp_path / "out")["skipped"][str(corpus)]
    assert len(skipped) == 3
    assert all(f"{i}.wav" in skipped[i - 1] for i in (1, 2, 3))
    assert "1 utterances, 3 skipped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("beam=0", "beam must be at least 1, got 0"),
        ("beam=wide", "beam must be a whole number, got 'wide'"),
        ("beam=1000000000", "a beam keeps from 1 to 1000 hypotheses, got 1000000000"),
        ("limit=true", "limit must be a whole number or null, got True"),
        ("delay=5", "delay must be true or false, got 5"),
        ("modes=5", "modes must be a list of texts, got 5"),
        ("latencies_ms=[long]", "latencies_ms must be a list of numbers or null, got ['long']"),
        ("threads=100000", "threads must be from 1 to 1024, got 100000"),
        ("data.max_bad=some", "data.max_bad must be a number, got 'some'"),
        ("+data.colour=red", "data cannot be built as configured: "),
        ("data=5", "there is no data '5'; there are: aishell, librispeech"),
        ("aligner=[a,b]", "aligner must be a text or null, got ['a', 'b']"),
        ("modes=[sideways]", "sideways"),
        ("decoders=[attention]", "this model has the decoders rnnt, ctc, got 'attention'"),
        ("latencies_ms=[-5]", "-5"),
    ],
)
def test_a_wrong_option_is_refused_before_the_corpus_is_read(
    word: str, sentence: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, f"model={model}", "data.test=[nowhere.jsonl]", f"out={tmp_path / 'out'}", word)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("error: ")
    assert sentence in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "name a model: model=FOLDER"),
        (["model=nowhere/at/all"], "nowhere/at/all"),
        (["model=[a,b]"], "model must be a folder, a .nemo file or a hub id, got ['a', 'b']"),
        (["model={model}", "data.rot=x"], "no option 'data.rot' (did you mean data.root"),
        (["model={model}", "data.test=[none.jsonl]"], "none.jsonl"),
        (["model={model}", "data.test=[]"], "data.test=[...] holds no split"),
        (["model={model}", "device=abacus"], "there is no kind of device 'abacus'"),
        (["model={model}", "device=cuda:99"], "this machine has no device cuda:99"),
        (["model={model}", "data.test=[{corpus}]", "limit=0"], "limit must be at least 1, got 0"),
        (["model={model}", "data.test=[{corpus}]", "threads=0"], "threads must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    words: list[str], sentence: str, model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, f"out={tmp_path / 'out'}", *(word.format(model=model, corpus=corpus) for word in words))
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert sentence in said


def test_a_word_may_stand_for_a_list_of_one(
    model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["modes=offline", "decoders=ctc", "latencies_ms=[0]"]
    run(monkeypatch, f"model={model}", f"data.test={corpus}", f"out={tmp_path / 'out'}", *words)
    assert [(s["decoder"], s["mode"]) for s in scores(tmp_path / "out")["scores"]] == [("ctc", "offline")]


def test_a_later_split_that_cannot_be_read_does_not_cost_the_scores_of_the_first(
    model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, f"model={model}", f"data.test=[{corpus},none.jsonl]", f"out={out}", "modes=[offline]")
    assert stopped.value.code == 2
    assert "none.jsonl" in capsys.readouterr().err
    assert {s["split"] for s in scores(out)["scores"]} == {str(corpus)}
    assert (out / "wer.png").read_bytes()[:4] == b"\x89PNG"


def test_a_full_disk_leaves_the_former_picture(
    model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, words = tmp_path / "out", [f"model={model}", f"data.test=[{corpus}]", "modes=[offline]", "decoders=[ctc]"]
    run(monkeypatch, *words, f"out={out}")
    before = (out / "wer.png").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, hard))  # room for the table, but not for the picture
    try:
        with pytest.raises(SystemExit) as stopped:
            run(monkeypatch, *words, f"out={out}", "latencies_ms=[0]")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert stopped.value.code == 2
    assert f"Cannot write {out / 'wer.png'}: File too large" in capsys.readouterr().err
    assert (out / "wer.png").read_bytes() == before
    assert sorted(path.name for path in out.iterdir()) == ["scores.json", "scores.txt", "wer.png"]


def test_what_is_no_recogniser_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "load", lambda *_: object())
    with pytest.raises(InputError, match="voices/ann is no model for recognition"):
        recogniser("voices/ann")
