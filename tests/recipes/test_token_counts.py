"""The right number of tokens is what a text has, and what is no Paraformer is named."""

import json
from pathlib import Path

import pytest
import soundfile
import torch

import speechkit
from recipes.librispeech.token_counts import main, measured
from speechkit.asr.ctc import CtcHead
from speechkit.asr.transcriber import Transcriber
from speechkit.text import CharTokenizer
from tests.asr.small_paraformer import VOCAB, paraformer
from tests.asr.tiny import babble, release

RATE = 8000


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    lines = []
    for i, text in enumerate(("abc cab", "ab")):
        soundfile.write(tmp_path / f"{i}.wav", babble(2.0, RATE, seed=i), RATE)
        lines.append(json.dumps({"audio_filepath": str(tmp_path / f"{i}.wav"), "text": text, "duration": 2.0}))
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "dev.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_the_number_of_tokens_is_own_or_the_text_s(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = paraformer(rate=RATE, ctc=CtcHead(8, VOCAB)).float()
    api = Transcriber(model, CharTokenizer(" abcdefgh"))
    monkeypatch.setattr(speechkit, "load", lambda _: api)
    found = list(measured(api, str(corpus), "dev"))
    assert [text for text, _, _ in found] == ["abc cab", "ab"]
    for (text, ways, off), name in zip(found, ("0.wav", "1.wav"), strict=True):
        assert ways["own number"] == api.transcribe(corpus / name).text
        wave = torch.from_numpy(soundfile.read(corpus / name, dtype="float32")[0])[None]
        heard = model.heard(*model.front(wave, torch.tensor([wave.shape[1]])))
        assert off == pytest.approx(heard.weights.sum().item() - len(text) - 1, abs=1e-3)
        assert len(ways["right number"]) <= len(text) + 1
    assert main(["model", str(corpus), "dev"]) == 0
    said = capsys.readouterr().out
    for way in ("own number", "right number", "CTC"):
        assert f"{way}: WER" in said
    assert "of 3 words" in said


def test_what_cannot_be_counted_is_said(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = str(release(corpus / "release"))
    assert main([other, str(corpus), "dev"]) == 2
    assert "this is of Paraformers, not of a Recognizer" in capsys.readouterr().err
    assert main([str(corpus / "nothing"), str(corpus), "dev"]) == 2
    assert "error: " in capsys.readouterr().err
