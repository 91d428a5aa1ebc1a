"""Texts that lie beside recordings."""

from pathlib import Path

import numpy as np
import pytest

from speechkit import audio
from speechkit.data.codec_module import CropDataModule
from speechkit.data.module import SpeechDataModule


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Splits in the layouts of LibriSpeech, LibriTTS and LJSpeech, and a folder of sounds."""
    for name in ("speech/1/2/1-2-0", "speech/1/2/1-2-1", "tts/3/4/3_4_0_0", "lj/wavs/LJ001-0001", "sounds/a/bell"):
        path = tmp_path / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        audio.write(path, np.zeros(1600), 16_000)
    (tmp_path / "speech/1/2/1-2.trans.txt").write_text("1-2-0 HELLO THERE\n")
    (tmp_path / "tts/3/4/3_4_0_0.normalized.txt").write_text("Hello, there.\n")
    (tmp_path / "lj/metadata.csv").write_text("LJ001-0001|Mr. Hello|Mister Hello\n")
    return tmp_path


@pytest.mark.parametrize("module", [SpeechDataModule, CropDataModule])
def test_recordings_have_the_texts_that_their_corpus_keeps(corpus: Path, module: type[SpeechDataModule]) -> None:
    data = module(root=str(corpus))
    texts = {split: [one.text for one in data.recordings(split)] for split in ("speech", "tts", "lj", "sounds")}
    assert texts == {"speech": ["HELLO THERE", ""], "tts": ["Hello, there."], "lj": ["Mister Hello"], "sounds": [""]}


def test_a_recording_that_cannot_be_used_is_named(corpus: Path) -> None:
    (corpus / "sounds" / "b.wav").write_bytes(b"nothing")
    found = SpeechDataModule(root=str(corpus)).recordings("sounds")
    assert [one.id for one in found] == ["a/bell"]
    assert len(found.bad) == 1
    assert "b.wav" in found.bad[0]
