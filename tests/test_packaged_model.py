"""The model that comes along: what `speechkit.load()` gives."""

from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import torch

import speechkit
from recipes.speechocean.texts import written
from speechkit import audio, hub
from speechkit.asr.transcriber import Transcriber
from speechkit.data.espeak import Espeak
from speechkit.data.reading import Reading, Style, record, speak
from speechkit.streaming.engine import Engine
from speechkit.text import normalize
from tests.paths import DATA, needs_data

SENTENCES = written()[::1200]


@pytest.fixture(scope="module")
def model() -> Transcriber:
    loaded = speechkit.load()
    assert isinstance(loaded, Transcriber)
    return loaded


@pytest.fixture(scope="module")
def speech() -> list[np.ndarray]:
    """Sentences in voices of the embedded corpus' test split."""
    pytest.importorskip("espeakng_loader", reason="synthetic speech needs espeak-ng: pip install 'speechkit[all]'")
    style, waves = Style(rate=(140, 160), pitch=(40, 60)), []
    with Espeak() as espeak:
        for i, text in enumerate(SENTENCES):
            rng = np.random.default_rng(i)
            reading = Reading(text, ("en-us+f3", "en-gb+m3")[i % 2], 1, 1, i)
            waves.append(record(speak(espeak, reading, style, rng), [], style, rng))
    return waves


def test_it_is_small_and_says_nothing_of_the_machine_it_was_made_on() -> None:
    folder = hub.default()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 30e6
    config = (folder / "config.yaml").read_text()
    assert not any(str(Path(part)) in config for part in ("/tmp", "/home", "/root", "/work"))
    card = (folder / "README.md").read_text()
    assert all(word in card for word in ("Licence", "speechocean762", "test-l2", "test-other", "words"))


def test_its_look_aheads_are_the_published_ones(model: Transcriber) -> None:
    assert model.latencies_ms == [1040.0, 480.0, 80.0, 0.0]


@pytest.mark.parametrize("decoder", ["rnnt", "ctc"])
def test_it_understands_most_of_what_a_synthetic_voice_says(
    model: Transcriber, speech: list[np.ndarray], decoder: str
) -> None:
    said = [model.transcribe(wave, latency_ms=80, decoder=decoder).text for wave in speech]
    assert jiwer.wer([normalize(text) for text in SENTENCES], said) < 0.4


@needs_data
@pytest.mark.parametrize("decoder", ["rnnt", "ctc"])
def test_real_recordings_stream_to_the_text_and_words_of_the_whole(model: Transcriber, decoder: str) -> None:
    files = sorted((DATA / "asr" / "test-other").rglob("*.flac"))[:3]
    assert files
    for file in files:
        stream = model.stream(latency_ms=80, decoder=decoder)
        for block in audio.blocks(file, seconds=0.1):
            stream.push(block)
        whole, streamed = model.transcribe(file, latency_ms=80, decoder=decoder), stream.finish()
        assert whole.words
        assert [(w.text, w.start_s, w.end_s) for w in streamed.words] == [
            (w.text, w.start_s, w.end_s) for w in whole.words
        ]


@pytest.mark.parametrize("latency_ms", [0.0, 1040.0])
def test_its_streams_say_what_it_says_of_the_whole(
    model: Transcriber, speech: list[np.ndarray], latency_ms: float
) -> None:
    wave = np.concatenate(speech[:2])
    stream = model.stream(latency_ms=latency_ms)
    for piece in np.array_split(wave, 37):
        stream.push(piece)
    with torch.inference_mode():
        assert stream.finish().text == model.transcribe(wave, latency_ms=latency_ms).text


def test_a_server_can_run_it_at_every_look_ahead(model: Transcriber, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, run = Engine(model), list[Any]()
    module = engine.module

    def noted(context: Any) -> Any:
        run.append(context)
        return module(context)

    monkeypatch.setattr(engine, "module", noted)
    engine.warm()
    contexts = list(dict.fromkeys(run))
    assert contexts == [engine.context(latency_ms) for latency_ms in model.latencies_ms]
    assert len(contexts) == 4
