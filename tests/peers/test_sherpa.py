"""sherpa-onnx, a recogniser that nobody here wrote, runs our exports."""

from pathlib import Path

import jiwer
import numpy as np
import pytest

import speechkit
from speechkit import audio
from speechkit.asr.transcriber import Transcriber
from speechkit.onnx.nemo import write_nemo
from tests.paths import DATA, needs_data

sherpa_onnx = pytest.importorskip("sherpa_onnx", reason="the extra peers installs it")

RATE = 16_000
SHIFT = 80  # samples: sherpa's frames lie half a stride after NeMo's (Kaldi's `snip_edges=false`)
TAIL = RATE  # samples of silence: sherpa drops what does not fill its last window


@pytest.fixture(scope="module")
def model() -> Transcriber:
    return speechkit.load()


@pytest.fixture(scope="module")
def exported(model: Transcriber, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nemo")
    write_nemo(model, folder, (70, 1))
    return folder


def recordings(count: int) -> list[np.ndarray]:
    files = sorted((DATA / "asr" / "test-l2").rglob("*.flac"))[:count]
    return [audio.read(file, RATE) for file in files]


def heard(recogniser: object, wave: np.ndarray) -> str:
    stream = recogniser.create_stream()  # type: ignore[attr-defined]
    stream.accept_waveform(RATE, np.concatenate([np.zeros(SHIFT, np.float32), wave, np.zeros(TAIL, np.float32)]))
    stream.input_finished()
    while recogniser.is_ready(stream):  # type: ignore[attr-defined]
        recogniser.decode_stream(stream)  # type: ignore[attr-defined]
    return str(recogniser.get_result(stream))  # type: ignore[attr-defined]


@needs_data
@pytest.mark.parametrize(("decoder", "least"), [("rnnt", 9), ("ctc", 8)])
def test_sherpa_says_what_we_say(model: Transcriber, exported: Path, decoder: str, least: int) -> None:
    """But for a word now and then: its features are others (docs/export.md), and the model is weak."""
    tokens = str(exported / "tokens.txt")
    if decoder == "rnnt":
        recogniser = sherpa_onnx.OnlineRecognizer.from_transducer(
            tokens=tokens, encoder=str(exported / "encoder.onnx"), decoder=str(exported / "decoder.onnx"),
            joiner=str(exported / "joiner.onnx"), num_threads=1, enable_endpoint_detection=False,
        )  # fmt: skip
    else:
        recogniser = sherpa_onnx.OnlineRecognizer.from_nemo_ctc(
            tokens=tokens, model=str(exported / "model.onnx"), num_threads=1, enable_endpoint_detection=False
        )
    waves = recordings(10)
    theirs = [heard(recogniser, wave).strip() for wave in waves]
    padded = [np.concatenate([wave, np.zeros(TAIL, np.float32)]) for wave in waves]
    ours = [model.transcribe(wave, latency_ms=80, decoder=decoder).text for wave in padded]
    assert sum(a == b for a, b in zip(theirs, ours, strict=True)) >= least
    assert jiwer.wer(ours, theirs) <= 0.05
