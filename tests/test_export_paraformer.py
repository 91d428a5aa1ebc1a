"""A Paraformer's export says what the model says: whole, in streams, with phrases, and of silence."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import speechkit
from speechkit.asr.blocks import Grid
from speechkit.asr.conformer_blocks import ConformerBlocks
from speechkit.asr.transcriber import Transcriber
from speechkit.errors import InputError
from speechkit.export import run as export
from speechkit.onnx.kind import KINDS, kind_of
from speechkit.onnx.paraformer import OnnxParaformer
from speechkit.onnx.parity import chained, compared
from speechkit.text import CharTokenizer
from tests.asr.small_paraformer import paraformer
from tests.asr.small_seaco import seaco

RATE = 8000
GRIDS = {"sanm": Grid(0, 3, 2, 2, 1), "conformer": Grid(0, 2, 0, 3, 1)}  # both look 80 ms ahead
PRECISIONS = {"sanm": ["fp32", "int8", "fp16"], "conformer": ["fp32", "int8"]}
NOTHING: Any = type("Data", (), {"test": [], "prepare_data": lambda self: None})()
DAMAGES: list[dict[str, Any]] = [
    {"scores": None}, {"latency_ms": "a"}, {"scores_file": "../x.onnx"}, {"file": 5}, {"context": [0, 3, 2]},
    {"context": [0, 4, 3, 0, 0]},
]  # fmt: skip
TOKENIZER = CharTokenizer(" abcdefgh")


@pytest.fixture(scope="module", params=GRIDS)
def model(request: pytest.FixtureRequest) -> Transcriber:
    return Transcriber(paraformer((GRIDS[request.param],), request.param, RATE, (2, 1)).float(), TOKENIZER)


@pytest.fixture(scope="module")
def folder(model: Transcriber, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `speechkit export` writes, a folder for each precision, which compares them with the model itself."""
    place = tmp_path_factory.mktemp("export") / "paraformer"
    network: Any = model.model
    kind = "conformer" if isinstance(network.encoder, ConformerBlocks) else "sanm"
    export(model, place, PRECISIONS[kind], None, False, NOTHING, None)
    return place


@pytest.fixture(scope="module")
def exported(folder: Path) -> Transcriber:
    found: Transcriber = speechkit.load(folder / "fp32")
    assert isinstance(found.model, OnnxParaformer)
    return found


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    drawn = torch.randn(round(seconds * RATE), generator=torch.Generator().manual_seed(seed))
    return (0.3 * drawn).numpy().clip(-1, 1)


def test_it_is_a_kind_of_its_own(model: Transcriber, exported: Transcriber) -> None:
    assert kind_of(model) is KINDS["paraformer"]
    assert exported.model.contexts == model.model.contexts
    assert exported.latencies_ms == model.latencies_ms


@pytest.mark.parametrize("latency_ms", [None, 80.0])
@pytest.mark.parametrize("seconds", [0.001, 0.05, 0.2, 3.0])
def test_recordings_of_any_length_have_the_same_words(
    model: Transcriber, exported: Transcriber, latency_ms: float | None, seconds: float
) -> None:
    wave = noise(seconds, seed=1)
    one, other = (found.transcribe(wave, latency_ms=latency_ms) for found in (model, exported))
    assert one.text == other.text
    assert [(w.text, w.start_s, w.end_s) for w in one.words] == [(w.text, w.start_s, w.end_s) for w in other.words]
    assert one.hypotheses[0].log_probs == pytest.approx(other.hypotheses[0].log_probs, abs=1e-4)


def test_streams_are_the_same_in_pieces_of_any_size(model: Transcriber, exported: Transcriber) -> None:
    wave = noise(4, seed=2)
    stream = exported.stream(80)
    for begin in range(0, len(wave), 997):
        stream.push(wave[begin : begin + 997])
    assert stream.finish().text == model.stream(80).push(wave).finish().text != ""


def test_phrases_are_favoured_by_the_same_graphs(model: Transcriber, exported: Transcriber) -> None:
    for latency_ms in (None, 80.0):
        said = [
            found.transcribe(noise(3), latency_ms=latency_ms, hotwords=["fade"], hotword_weight=30).text
            for found in (model, exported)
        ]
        assert said[0] == said[1]
        assert "fade" in said[0]


@torch.inference_mode()
def test_rows_of_a_batch_are_apart_and_silence_has_no_tokens(exported: Transcriber) -> None:
    """Also where no row has any, for which FunASR's graph fails."""
    network: Any = exported.model
    waves = [torch.from_numpy(noise(seconds, seed=3)) for seconds in (2.0, 0.7, 0.0, 0.002)]
    lengths = torch.tensor([len(wave) for wave in waves])
    padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    for context in network.contexts:
        greedy = network.greedy("nar", context)
        together = greedy(*network.encode(padded, lengths, context))
        assert together.lengths.tolist()[2:] == [0, 0]
        for row, wave in enumerate(waves):
            alone = greedy(*network.encode(wave[None], lengths[row : row + 1], context))
            count = int(alone.lengths)
            assert int(together.lengths[row]) == count
            torch.testing.assert_close(together.values[row, :count], alone.values[0, :count], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_every_precision_is_near_the_model(model: Transcriber, folder: Path) -> None:
    """Kaldi's samples, 32768 times as large, are over all numbers of half precision."""
    network: Any = model.model
    stream, allowed = network.streaming(network.contexts[1]), {"fp32": 1e-5, "int8": 0.1, "fp16": 0.02}
    for place in sorted(folder.iterdir()):
        torch.manual_seed(0)
        other = speechkit.load(place).model.streaming(network.contexts[1])
        found = compared(None, place.name, chained(stream, other))
        assert found.difference <= allowed[place.name] * found.size


def test_graphs_of_log_mel_features_say_the_same(tmp_path: Path) -> None:
    model = Transcriber(paraformer((GRIDS["conformer"],), "conformer", RATE, (2, 1)).float(), TOKENIZER)
    export(model, tmp_path / "features", ["fp32"], None, True, NOTHING, None)
    exported = speechkit.load(tmp_path / "features")
    assert exported.model.takes == "features"
    for latency_ms in (None, 80.0):
        one, other = (found.transcribe(noise(2, seed=5), latency_ms=latency_ms) for found in (model, exported))
        assert one.text == other.text != ""


def test_what_cannot_be_exported_or_read_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    reference = paraformer(rate=RATE).float()
    reference.compat = "reference"
    with pytest.raises(InputError, match="loaded with compat='reference' cannot be exported"):
        export(Transcriber(reference, TOKENIZER), tmp_path / "other", ["fp32"], None, False, NOTHING, None)
    with pytest.raises(InputError, match="a SeACo-Paraformer cannot be exported: its bias decoder"):
        export(Transcriber(seaco(RATE)[1].float(), TOKENIZER), tmp_path / "other", ["fp32"], None, False, NOTHING, None)
    assert not (tmp_path / "other").exists()
    broken = shutil.copytree(folder / "fp32", tmp_path / "broken")
    meta = json.loads((broken / "meta.json").read_text())
    changes: list[dict[str, Any]] = [
        {"special": [-1]},
        {"contexts": []},
        {"vocab_size": 3},
        {"front": {}},
        {"takes": "tea"},
        {"special": []},
        {"rate": 16_000},
        {"lead_ms": float("nan")},
        *({"contexts": [{**meta["contexts"][1], **inner}]} for inner in DAMAGES),
    ]
    for change in changes:
        (broken / "meta.json").write_text(json.dumps({**meta, **change}))
        with pytest.raises(InputError):
            speechkit.load(broken)
