"""The streaming example, with a tiny random model."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import speechkit
from demo.transcribe_stream import BLOCK_S, main
from speechkit import audio, hub
from speechkit.release import build
from speechkit.text import CharTokenizer

SYMBOLS = [" ", *"abcdefgh"]
CONFIG = {
    "model": {
        "_target_": "speechkit.asr.model.Recognizer",
        "front": {"_target_": "speechkit.features.LogMel", "n_mels": 16},
        "encoder": {
            "_target_": "speechkit.asr.conformer.ConformerEncoder",
            "n_mels": 16,
            "dim": 8,
            "layers": 1,
            "heads": 2,
            "conv_kernel": 3,
            "subsampling_channels": 4,
            "contexts": [[4, 1], [4, 0]],
        },
        "ctc": {"_target_": "speechkit.asr.ctc.CtcHead", "encoder_dim": 8, "vocab_size": len(SYMBOLS)},
    }
}


@pytest.fixture
def release(tmp_path: Path) -> str:
    return str(hub.save(tmp_path / "release", CONFIG, build(CONFIG["model"]), CharTokenizer(SYMBOLS), "# Random"))


@pytest.fixture
def speech(tmp_path: Path) -> str:
    rng = np.random.default_rng(1)
    path = tmp_path / "speech.wav"
    audio.write(path, 0.1 * rng.standard_normal(24000).astype(np.float32), 8000)
    return str(path)


def test_the_printed_text_is_that_of_the_whole_file(
    release: str, speech: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = speechkit.load(release).transcribe(speech, latency_ms=80).text
    assert whole
    assert main([speech, "--model", release, "--latency-ms", "80"]) == 0
    assert capsys.readouterr().out.strip() == whole


@pytest.mark.parametrize("missing", ["model", "file"])
def test_what_is_not_there_is_said_in_a_sentence(
    missing: str, release: str, speech: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, file = ("./nothing", speech) if missing == "model" else (release, "./nothing.wav")
    assert main([file, "--model", model]) == 2
    assert "nothing" in capsys.readouterr().err


def test_a_microphone_that_is_not_there_is_said_in_a_sentence(
    release: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert main(["--model", release]) == 2
    assert "mic" in capsys.readouterr().err


def test_the_microphone_is_heard_until_ctrl_c(
    release: str, speech: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class InputStream:
        def __init__(self, samplerate: int, channels: int, dtype: str) -> None:
            self.blocks = audio.blocks(speech, samplerate, BLOCK_S)

        def __enter__(self) -> "InputStream":
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def read(self, count: int) -> tuple[np.ndarray, bool]:
            block = next(self.blocks, None)
            if block is None:
                raise KeyboardInterrupt
            return block[:, None], False

    device = ModuleType("sounddevice")
    device.InputStream = InputStream  # type: ignore[attr-defined]
    device.PortAudioError = OSError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sounddevice", device)
    assert main(["--model", release]) == 0
    assert capsys.readouterr().out.strip() == speechkit.load(release).transcribe(speech).text
