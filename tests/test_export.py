"""Exports: written whole, checked, and as good as the model that they were made of."""

import errno
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
import soundfile
import torch
from typer.testing import CliRunner

import speechkit
import speechkit.export
from speechkit import hub
from speechkit.asr.transcriber import Transcriber
from speechkit.commands.app import app
from speechkit.errors import InputError
from speechkit.onnx import META, check
from speechkit.onnx.read import read
from speechkit.onnx.release import export, export_nemo
from tests.asr import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.release(tmp_path_factory.mktemp("release") / "model")


OURS = '{"speechkit": "0.1"}'
STATE: list[str | int] = ["contexts", 0, "stream", "state", 0]


def put(folder: Path, path: Sequence[str | int], value: Any) -> None:
    """Changes a value of meta.json, or some of an object's."""
    meta = json.loads((folder / META).read_text())
    inner = meta
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = inner[path[-1]] | value if path is STATE else value
    (folder / META).write_text(json.dumps(meta))


def reword(folder: Path, old: str, new: str) -> None:
    (folder / META).write_text((folder / META).read_text().replace(old, new))


@pytest.fixture(scope="module")
def exported(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], list[str]]:
    """All precisions of the tiny model, and the lines of the report."""
    said: list[str] = []
    folder = tmp_path_factory.mktemp("exports") / "tiny"
    return export(hub.load(model), folder, ["fp32", "int8", "fp16"], say=said.append), said


@pytest.fixture
def copies(exported: tuple[dict[str, Path], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports copy the graphs of `exported`, which takes less time than to make them."""

    def copied(transcriber: Transcriber, folder: Path, *_: object) -> None:
        shutil.copytree(exported[0]["fp32"], folder, dirs_exist_ok=True)

    monkeypatch.setattr("speechkit.onnx.release.write", copied)


def test_each_precision_is_a_model_of_its_own(exported: tuple[dict[str, Path], list[str]], model: Path) -> None:
    places, _ = exported
    original = speechkit.load(model)
    for precision, place in places.items():
        loaded = speechkit.load(place)
        assert isinstance(loaded, Transcriber)
        assert json.loads((place / META).read_text())["precision"] == precision
        assert loaded.latencies_ms == original.latencies_ms == [80.0, 0.0]
        assert loaded.rate == original.rate
        with pytest.raises(InputError, match="this model is an export"):
            _ = loaded.network


@pytest.mark.parametrize("decoder", ["rnnt", "ctc"])
@pytest.mark.parametrize("latency", [80.0, 0.0])
@pytest.mark.parametrize("beam", [1, 3])
def test_an_export_says_what_the_model_says(
    exported: tuple[dict[str, Path], list[str]], model: Path, decoder: str, latency: float, beam: int
) -> None:
    ours, theirs = speechkit.load(model), speechkit.load(exported[0]["fp32"])
    for seed in range(2):
        wave = tiny.babble(3, seed=seed)
        expected = ours.transcribe(wave, latency_ms=latency, decoder=decoder, beam=beam)
        found = theirs.transcribe(wave, latency_ms=latency, decoder=decoder, beam=beam)
        assert found.text == expected.text
        assert found.text
        assert [(w.text, w.start_s, w.end_s) for w in found.words] == [
            (w.text, w.start_s, w.end_s) for w in expected.words
        ]


def test_hotwords_work_in_an_export(exported: tuple[dict[str, Path], list[str]], model: Path) -> None:
    wave = tiny.babble(3)
    texts = [
        speechkit.load(place).transcribe(wave, latency_ms=80, hotwords=["abc"], hotword_weight=4.0).text
        for place in (model, exported[0]["fp32"])
    ]
    assert texts[0] == texts[1]


def test_the_report_names_every_difference(exported: tuple[dict[str, Path], list[str]]) -> None:
    said = "\n".join(exported[1])
    for line in ("fp32 encoder 4,1: largest difference", "fp32 encoder 4,0", "fp32 rnnt", "fp32 ctc", "int8 encoder"):
        assert line in said
    assert "MB in" in said


@pytest.mark.usefixtures("copies")
def test_word_errors_are_compared_and_too_many_refused(model: Path, tmp_path: Path) -> None:
    """Of a model with random weights eight bits make another one."""
    transcriber = hub.load(model)
    said: list[str] = []
    waves = [torch.from_numpy(tiny.babble(2 + i, seed=i)) for i in range(2)]
    texts = [transcriber.transcribe(wave.numpy(), latency_ms=80).text for wave in waves]
    count = sum(len(text.split()) for text in texts)
    recordings = [("babble", waves, texts)]
    with pytest.raises(InputError, match=r"the int8 graphs make .* % more word errors, where 0.5 is allowed") as failed:
        export(transcriber, tmp_path / "out", ["fp32", "int8"], recordings=recordings, say=said.append)
    assert str(failed.value).endswith("; all precisions are written or none: leave out int8 to have fp32")
    assert f"fp32 babble ({count} words) rnnt 80 ms: WER 0.00 %, the model's 0.00 %" in said
    assert f"int8 babble ({count} words) ctc 0 ms" in "\n".join(said)
    assert not any((tmp_path / "out").iterdir()), "not even what had passed"


def test_the_weights_lie_once_beside_small_graphs(exported: tuple[dict[str, Path], list[str]]) -> None:
    place = exported[0]["fp32"]
    assert sorted(path.name for path in place.iterdir()) == [
        "characters.json", "ctc.onnx", "encoder_4_0.onnx", "encoder_4_1.onnx", "joiner.onnx", "meta.json",
        "predictor.onnx", "weights.bin",
    ]  # fmt: skip


def test_eight_bits_are_in_the_encoders_products(exported: tuple[dict[str, Path], list[str]]) -> None:
    places, _ = exported
    kinds = {
        name: {node.op_type for node in onnx.load(place / "encoder_4_1.onnx", load_external_data=False).graph.node}
        for name, place in places.items()
    }
    assert "MatMulInteger" in kinds["int8"]
    assert "MatMulInteger" not in kinds["fp32"]


def test_half_precision_is_in_the_encoder_and_not_in_its_features(
    exported: tuple[dict[str, Path], list[str]], model: Path
) -> None:
    places, _ = exported
    graph = onnx.load(places["fp16"] / "encoder_4_1.onnx", load_external_data=False).graph
    kinds = {x.name: x.data_type for x in graph.initializer if len(x.dims) >= 2}
    half = {name for name, kind in kinds.items() if kind == onnx.TensorProto.FLOAT16}
    assert len(half) > 0.7 * len(kinds)
    assert not [name for name in half if name.endswith(".mel")]
    assert {x.type.tensor_type.elem_type for x in graph.input} & {onnx.TensorProto.FLOAT16} == set()
    wave = tiny.babble(3)
    texts = [speechkit.load(place).transcribe(wave, latency_ms=80).text for place in (model, places["fp16"])]
    assert texts[0][:20] == texts[1][:20]


def test_parity_sees_a_difference(exported: tuple[dict[str, Path], list[str]], model: Path) -> None:
    other = speechkit.load(model)
    with torch.no_grad():
        other.network.encoder.layers[0].feed_forward1[0].weight[0, 0] += 0.5
    found = check.parity(other, read(exported[0]["fp32"]))
    assert max(item.difference for item in found if item.what == "encoder") > check.TOLERANCE


@pytest.mark.usefixtures("copies")
def test_an_export_that_differs_is_not_written(model: Path, tmp_path: Path) -> None:
    other = speechkit.load(model)
    with torch.no_grad():
        other.network.encoder.layers[0].feed_forward1[0].weight[0, 0] += 0.5
    with pytest.raises(InputError, match="do not compute what the model does: they differ by"):
        export(other, tmp_path / "out", say=print)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "names",
    [["precious.txt"], ["precious.txt", "meta.json"], ["tokens.txt", "model.onnx"], ["meta.json", "encoder.onnx"]],
)
def test_a_folder_with_other_things_is_not_touched(model: Path, tmp_path: Path, names: list[str]) -> None:
    """Somebody else's model among them."""
    for name in names:
        (tmp_path / name).write_text("[1]")
    result = CliRunner().invoke(app, ["export", str(model), "-o", str(tmp_path)])
    assert result.exit_code == 2
    assert "holds something else" in result.output
    assert {path.name for path in tmp_path.iterdir()} == set(names)


@pytest.mark.usefixtures("copies")
def test_an_older_export_is_replaced(model: Path, tmp_path: Path) -> None:
    (tmp_path / "encoder_9_9.onnx").write_bytes(b"older")
    (tmp_path / META).write_text(OURS)
    export(hub.load(model), tmp_path, say=print)
    assert isinstance(speechkit.load(tmp_path), Transcriber)
    assert not (tmp_path / "encoder_9_9.onnx").exists()


def test_a_full_disk_is_said_in_a_sentence(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("speechkit.onnx.release.write", full)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / META).write_text(OURS)
    with pytest.raises(InputError, match="out cannot be written: No space left on device"):
        export(hub.load(model), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / META).read_text() == OURS, "the older export survives"


def test_nothing_does_not_differ_from_nothing() -> None:
    """What a model gives that hears no words in noise."""
    nothing = torch.zeros(0, 9)
    assert check.compared(None, "whole", [(nothing, nothing)]).difference == 0


@pytest.mark.usefixtures("copies")
def test_a_reference_s_arithmetic_is_not_exported(model: Path, tmp_path: Path) -> None:
    reference = hub.load(model, compat="reference")
    for how in (export, export_nemo):
        with pytest.raises(InputError, match="loaded with compat='reference' cannot be exported: load it without"):
            how(reference, tmp_path / "out", say=print)
    assert not any(tmp_path.iterdir())


def test_not_a_number_is_a_difference() -> None:
    one, none = torch.zeros(3), torch.tensor([0.0, torch.nan, 0.0])
    assert math.isnan(check.compared(None, "ctc", [(one, none), (one, one)]).difference)


def test_the_layout_of_nemo_computes_what_the_model_does(model: Path, tmp_path: Path) -> None:
    """Checked by the export itself, over 20 chained calls; eight bits of the same graphs beside it."""
    words = ["--layout", "nemo", "--latency-ms", "0", "--precision", "fp32", "--precision", "int8"]
    result = CliRunner().invoke(app, ["export", str(model), "-o", str(tmp_path / "out"), *words])
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["fp32_4_0", "int8_4_0"]
    for kind in ("fp32", "int8"):
        folder = tmp_path / "out" / f"{kind}_4_0"
        names = ["decoder.onnx", "encoder.onnx", "joiner.onnx", "model.onnx", "tokens.txt"]
        assert sorted(path.name for path in folder.iterdir()) == names
        graph = onnx.load(folder / "encoder.onnx")
        about = {item.key: item.value for item in graph.metadata_props}
        assert (about["window_size"], about["chunk_shift"], about["vocab_size"]) == ("8", "8", "9")
        dims = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim][1:] for i in graph.graph.input}
        for name in ("cache_last_channel", "cache_last_time"):
            assert dims[name] == [int(about[f"{name}_dim{i}"]) for i in (1, 2, 3)]
    assert (tmp_path / "out" / "fp32_4_0" / "tokens.txt").read_text().splitlines()[-1] == "<blk> 9"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["-o", "/proc/x"], "/proc/x cannot be written"),
        (["-o", "x", "--latency-ms", "-5"], "no context of this model has a look-ahead of at most -5 ms"),
        (["-o", "x", "--check", "/nowhere"], "/nowhere is neither a manifest"),
        (["-o", "x", "--layout", "nemo", "--features"], "--layout nemo takes features always"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is(model: Path, words: list[str], sentence: str) -> None:
    result = CliRunner().invoke(app, ["export", str(model), *words])
    assert result.exit_code == 2
    assert sentence in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "name the folder of the export: out=FOLDER"),
        (["out=x", "recipe=nope"], "there is no recipe 'nope'; there are: "),
        (["out=x", "recipe=librispeech_conformer", "model=y"], "name a model or a recipe, not both"),
        (["out=x", "precison=int8"], "there is no option 'precison' (did you mean precision"),
    ],
)
def test_the_entry_point_says_what_is_wrong(
    words: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["export", *words])
    with pytest.raises(SystemExit) as ended:
        speechkit.export.main()
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda folder: (folder / META).write_text("{"), "is no JSON"),
        (lambda folder: (folder / META).write_text('{"format": 99}'), "has format 99"),
        (lambda folder: (folder / META).write_text('{"format": 1}'), "describes no recogniser"),
        (lambda folder: put(folder, ["contexts"], []), "no context"),
        (lambda folder: put(folder, ["heads"], {}), "no head"),
        (lambda folder: put(folder, ["takes"], "waves"), "neither samples nor features"),
        (lambda folder: put(folder, ["step_ms"], math.nan), "step_ms must be over 0"),
        (lambda folder: put(folder, ["rate"], "16000"), "rate must be a whole number"),
        (lambda folder: put(folder, ["contexts", 0, "latency_ms"], -2), "latency_ms must be over 0"),
        (lambda folder: put(folder, ["contexts", 0, "file"], "../ctc.onnx"), "must lie in its export's folder"),
        (lambda folder: put(folder, ["contexts", 0, "stream", "room"], 10**11), "room must be a whole number"),
        (lambda folder: put(folder, ["contexts", 0, "stream", "chunk"], 0), "chunk must be a whole number"),
        (lambda folder: put(folder, ["contexts", 0, "stream", "dtype"], "nn"), "dtype must be one of"),
        (lambda folder: put(folder, STATE, {"name": "class x"}), "no state is like"),
        (lambda folder: put(folder, STATE, {"dtype": "object"}), "no state is like"),
        (lambda folder: put(folder, STATE, {"shape": [10**7, 10**7]}), "no state is like"),
        (lambda folder: put(folder, STATE, {"shape": [-1]}), "a state's size must be"),
        (lambda folder: put(folder, ["heads", "rnnt", "dim"], 10**9), "dim must be a whole number"),
        (lambda folder: put(folder, ["heads", "rnnt", "layers"], 10**7), "no predictor has"),
        (lambda folder: (folder / "joiner.onnx").unlink(), "joiner.onnx is no ONNX graph"),
        (lambda folder: reword(folder, "joiner.onnx", "../joiner.onnx"), "a graph must lie in its export's folder"),
        (lambda folder: (folder / "weights.bin").write_bytes(b""), "is no ONNX graph that can be run here"),
        (lambda folder: (folder / "characters.json").write_text('["a"]'), "has 1 pieces, but its model gives 9"),
    ],
)
def test_damaged_exports_are_refused_in_one_sentence(
    change: object, sentence: str, exported: tuple[dict[str, Path], list[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "export"
    shutil.copytree(exported[0]["fp32"], folder)
    change(folder)  # type: ignore[operator]
    with pytest.raises(InputError, match=sentence):
        speechkit.load(folder)


def test_a_folder_that_does_not_say_its_kind_is_a_recogniser(
    exported: tuple[dict[str, Path], list[str]], tmp_path: Path
) -> None:
    """As those that were written before there were others."""
    folder = shutil.copytree(exported[0]["fp32"], tmp_path / "export")
    meta = json.loads((folder / META).read_text())
    assert meta.pop("kind") == "recognizer"
    (folder / META).write_text(json.dumps(meta))
    assert isinstance(speechkit.load(folder), Transcriber)


def test_an_export_has_no_other_arithmetic(exported: tuple[dict[str, Path], list[str]]) -> None:
    with pytest.raises(InputError, match="is an export, whose arithmetic is fixed"):
        speechkit.load(exported[0]["fp32"], compat="reference")
    with pytest.raises(InputError, match="take the release that it was made of"):
        export(speechkit.load(exported[0]["fp32"]), exported[0]["fp32"].parent / "again")


def test_a_model_with_full_context_cannot_be_exported(tmp_path: Path) -> None:
    full = hub.load(tiny.release(tmp_path / "full", [[-1, -1]]))
    with pytest.raises(InputError, match="no stream that could be exported"):
        export(full, tmp_path / "out")


@pytest.mark.usefixtures("copies")
def test_the_command_checks_on_recordings(model: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tiny.babble(2), tiny.RATE)
    (tmp_path / "split.jsonl").write_text(json.dumps({"path": "a.wav", "duration": 2.0, "text": "a bad cafe"}) + "\n")
    out, split = tmp_path / "out", tmp_path / "split.jsonl"
    words = ["export", str(model), "-o", str(out), "--check", str(split), "--limit", "1"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "(3 words)" in result.output
    assert "use it: speechkit transcribe --stream --model" in result.output
    assert isinstance(speechkit.load(out), Transcriber)


def test_features_can_be_what_goes_in(model: Path, tmp_path: Path) -> None:
    ours = hub.load(model)
    export(ours, tmp_path / "out", contexts=[(4, 0)], front=False, say=print)
    theirs = speechkit.load(tmp_path / "out")
    assert theirs.model.stream((4, 0)).interface.dim == ours.network.front.n_mels
    wave = tiny.babble(3)
    assert theirs.transcribe(wave, latency_ms=0).text == ours.transcribe(wave, latency_ms=0).text
