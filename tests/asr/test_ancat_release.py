"""A recogniser with adaptive look-ahead in use: streams, sessions, scores, the command and ONNX."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import speechkit
from speechkit import audio, hub
from speechkit.asr.ancat import AncatEncoder
from speechkit.asr.ancat_stream import AncatStream
from speechkit.asr.evaluation import Encoded, score
from speechkit.asr.latency import arrival
from speechkit.asr.scores import latency
from speechkit.asr.transcriber import Transcriber
from speechkit.asr.waits import arrival_steps, causal, wait
from speechkit.commands.app import app
from speechkit.streaming.endpoint import EndpointRules
from speechkit.streaming.engine import Engine
from speechkit.streaming.event import Final
from speechkit.streaming.export import export_stream
from speechkit.streaming.onnx import OnnxStream
from speechkit.streaming.session import Session
from speechkit.streaming.stream import Stream
from speechkit.text import CharTokenizer
from tests.asr.tiny import RATE, SYMBOLS, babble, configuration, recognizer, vary_gates
from tests.streaming.contract import Case, any_cut_equals_the_whole, rows_in_any_phase_are_independent

WAVE = babble(6.0, seed=3)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, gates of both kinds on `babble`."""
    config = configuration()
    encoder = {name: value for name, value in config["model"]["encoder"].items() if name != "contexts"}
    encoder |= {"_target_": "speechkit.asr.ancat.AncatEncoder", "left": 8, "right": 3}
    config["model"]["encoder"] = encoder
    model = recognizer(config)
    assert isinstance(model.encoder, AncatEncoder)
    with torch.no_grad():
        features = model.front(torch.from_numpy(babble(8.0, seed=99))[None], torch.tensor([8 * RATE]))
        vary_gates(model.encoder, model.encoder.subsampling(*features)[0] * model.encoder.scale)
    folder = tmp_path_factory.mktemp("model") / "release"
    return hub.save(folder, config, model, CharTokenizer(SYMBOLS), "# Random")


@pytest.fixture(scope="module")
def model(release: Path) -> Transcriber:
    loaded = speechkit.load(release)
    assert isinstance(loaded, Transcriber)
    return loaded


def test_a_stream_says_what_the_whole_says(model: Transcriber) -> None:
    said = model.transcribe(WAVE)
    assert len(said.text) > 5
    for decoder in ("rnnt", "ctc"):
        stream = model.stream(decoder=decoder)
        for piece in np.split(WAVE, [10, 5000, 5001, 40_000]):
            stream.push(piece)
        assert stream.finish().text == model.transcribe(WAVE, decoder=decoder).text
    assert model.latencies_ms == [2 * 3 * 80]


def test_sessions_among_others_say_what_the_whole_says(model: Transcriber) -> None:
    engine = Engine(model)
    rules = EndpointRules(trailing_s=None, silence_s=None, longest_s=None)
    waves = [babble(seconds, seed=i) for i, seconds in enumerate((4.0, 2.5, 3.0))]
    sessions = [Session(engine, rules=rules) for _ in waves]
    for start in range(0, 4 * RATE, 9001):
        for session, wave in zip(sessions, waves, strict=True):
            session.push(wave[start : start + 9001])
        engine.run(sessions)
    for session, wave in zip(sessions, waves, strict=True):
        session.finish()
        engine.run(sessions)
        finals = [event.text for event in session.events() if isinstance(event, Final)]
        assert finals[-1:] == [model.transcribe(wave).text]


def test_scores_have_the_measured_wait_beside_the_bound(model: Transcriber) -> None:
    waves = [torch.from_numpy(babble(3.0, seed=i)) for i in range(2)]
    ends: list[list[float] | None] = [[0.5 * (i + 1) for i in range(99)]] * 2
    texts = [model.transcribe(wave.numpy()).text for wave in waves]
    ends = [[0.01 * (i + 1) for i in range(len(text.split()))] for text in texts]
    scores = score(model, "babble", waves, texts, decoders=["rnnt"], word_ends=ends)
    assert [s.mode for s in scores] == ["offline", "streaming"]
    for line in scores:
        assert line.wer == 0
        assert line.wait is not None
        assert 0 < line.wait.mean < 480
        assert line.wait.p50 <= line.wait.p90 <= 480
        assert latency(line) == f"{line.wait.mean:.0f} (to 480)"
    assert scores[1].delay is not None


def test_delays_are_counted_from_the_call_in_which_a_token_came(model: Transcriber) -> None:
    """Feeding a stream step by step gives the outputs with the samples that `arrival_steps` and its clock say."""
    context = model.model.contexts[0]
    wave = torch.from_numpy(WAVE)
    steps = arrival_steps(model.model, [wave], context)
    assert steps is not None
    module, clock = model.model.streaming(context), causal(model.model, context)
    expected = [arrival(clock, int(step), len(wave)) for step in steps[0]]
    stream, came, fed = Stream(module), [], 0
    with torch.inference_mode():
        while fed + module.chunk < len(wave):
            size = module.first if fed == 0 else module.chunk
            pieces = stream.push(wave[fed : fed + size, None])
            fed += size
            came += [fed] * sum(map(len, pieces))
        stream.push(wave[fed:, None])
        came += [len(wave)] * sum(map(len, stream.flush()))
    assert came == expected
    found = wait(steps, 80.0)
    assert found is not None
    assert found.mean > 0
    assert Encoded(model, [wave], context, "streaming").arrivals is not None


def test_fixed_look_aheads_have_no_wait() -> None:
    plain = Transcriber(recognizer(configuration()), CharTokenizer(SYMBOLS))
    assert arrival_steps(plain.model, [torch.from_numpy(WAVE)], plain.model.contexts[0]) is None
    assert wait(None, 80.0) is None
    with pytest.raises(ValueError, match=r"fixed at \[4, 1\]: its stream is its own clock"):
        causal(plain.model, (4, 1))


def test_the_command_transcribes_a_file_as_a_stream(model: Transcriber, release: Path, tmp_path: Path) -> None:
    audio.write(tmp_path / "speech.wav", WAVE)
    words = ["transcribe", "--model", str(release), str(tmp_path / "speech.wav")]
    whole, streamed = (CliRunner().invoke(app, [*words, *more]) for more in ([], ["--stream"]))
    assert whole.exit_code == streamed.exit_code == 0
    text = model.transcribe(tmp_path / "speech.wav").text
    assert text in " ".join(whole.output.split())
    assert text in " ".join(streamed.output.split())


def test_its_graph_gives_what_the_whole_gives(tmp_path: Path) -> None:
    encoder = AncatEncoder(
        n_mels=8, dim=8, layers=1, heads=2, conv_kernel=3, subsampling_channels=2, left=4, right=2
    ).eval()  # fmt: skip
    vary_gates(encoder)
    interface = export_stream(AncatStream(encoder, encoder.adaptive), tmp_path / "layers.onnx", encoder.dim)

    def forward(x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        y, counts = encoder.contextualize(x.float(), lengths, encoder.adaptive)
        return y.double(), counts

    case = Case(OnnxStream(tmp_path / "layers.onnx", interface), forward, encoder.dim, longest=29, tolerance=1e-4)
    any_cut_equals_the_whole(case)
    rows_in_any_phase_are_independent(case)
