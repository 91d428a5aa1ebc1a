"""Codecs and speech tokenizers as ONNX graphs: the streaming contract, and export folders that are codecs again."""

import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import speechkit
from speechkit import audio
from speechkit.codecs.codec import Codec
from speechkit.codecs.quantizers import FiniteScalarQuantizer
from speechkit.codecs.s3_causal import CausalS3Tokenizer
from speechkit.codecs.s3_causal_layers import CausalS3Encoder
from speechkit.commands.app import app
from speechkit.errors import InputError
from speechkit.onnx import META
from speechkit.onnx.codec_check import check_networks
from speechkit.onnx.codec_export import CodecExport
from speechkit.onnx.publish import publish
from speechkit.streaming.export import export_stream
from speechkit.streaming.onnx import OnnxStream
from speechkit.streaming.stream import run
from tests.asr import tiny as recogniser
from tests.codecs.test_s3 import noise
from tests.streaming.contract import CHECKS, Case
from tests.test_codec_command import HOP, saved

SINGLE, EIGHT_BITS = 1e-4, 0.05  # how far samples may be off
CHUNKS = 2  # codes of a call: large graphs take long to make
STREAM = ["streams", "encoder", "stream"]


class Folders(NamedTuple):
    """A release, its exports in both precisions, and what was said while they were made."""

    release: Path
    places: dict[str, Path]
    said: list[str]

    def load(self, name: str = "fp32") -> Codec:
        found = speechkit.load(self.places.get(name, self.release))
        assert isinstance(found, Codec)
        return found


@pytest.fixture(scope="module", params=[(False, 1), (True, 3)], ids=["as published", "causal, three codebooks"])
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    causal, codebooks = request.param
    top = tmp_path_factory.mktemp("exports")
    release = saved(top / "release", causal, codebooks=codebooks)
    said: list[str] = []
    recordings = [("babble", [torch.from_numpy(recogniser.babble(1))], ["ab"])]
    export = CodecExport(speechkit.load(release), recordings, CHUNKS)
    return Folders(release, publish(export, top / "export", ["fp32", "int8"], said.append), said)


@pytest.fixture
def copies(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports copy the graphs of `folders`, which takes less time than to make them."""

    def copied(_: CodecExport, folder: Path) -> None:
        shutil.copytree(folders.places["fp32"], folder, dirs_exist_ok=True)

    monkeypatch.setattr(CodecExport, "write", copied)


def cut(x: Tensor, largest: int) -> Iterator[Tensor]:
    random.seed(0)
    start = 0
    while start < len(x):
        size = random.randint(0, largest)
        yield x[start : start + size]
        start += size


def joined(pieces: Iterator[Tensor]) -> Tensor:
    return torch.cat(list(pieces))


# What an export gives


def test_an_export_says_what_the_codec_says_of_itself(folders: Folders) -> None:
    ours = folders.load("release")
    for precision, place in folders.places.items():
        theirs = folders.load(precision)
        for name in ("rate", "hop", "size", "codebooks", "causal"):
            assert getattr(theirs, name) == getattr(ours, name)
        for name in ("codes_per_call", "encoding_latency_s", "decoding_latency_s"):
            assert getattr(theirs, name) == getattr(Codec(ours.model, CHUNKS), name)
        assert theirs.model.fingerprint() == ours.model.fingerprint()
        meta = json.loads((place / META).read_text())
        assert (meta["kind"], meta["precision"]) == ("codec", precision)


@pytest.mark.parametrize("count", [1, HOP - 1, HOP, HOP + 1, 7 * HOP + 3, 40 * HOP])
def test_whole_recordings_of_any_length(folders: Folders, count: int) -> None:
    """In a batch with shorter ones, the shortest less than the padding of one convolution."""
    ours, theirs = folders.load("release"), folders.load()
    torch.manual_seed(1)
    wave, lengths = torch.randn(3, count), torch.tensor([count, count // 2 + 1, 1])
    expected, found = ours.encode(wave, lengths), theirs.encode(wave, lengths)
    assert torch.equal(found.values, expected.values)
    assert torch.equal(found.lengths, expected.lengths)
    torch.testing.assert_close(theirs.decode(found), ours.decode(expected), atol=SINGLE, rtol=SINGLE)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", SINGLE), ("int8", EIGHT_BITS)])
def test_pieces_give_what_the_whole_gives(folders: Folders, precision: str, tolerance: float) -> None:
    """The codes are the same in eight bits too, and the sound is nearly so."""
    ours, theirs = folders.load("release"), folders.load(precision)
    torch.manual_seed(2)
    wave = torch.randn(20 * HOP - 7)
    codes = joined(theirs.encode_stream(cut(wave, 3 * HOP)))
    assert torch.equal(codes, ours.encode(wave).values[0])
    expected = joined(ours.decode_stream(cut(codes, 9)))
    found = joined(theirs.decode_stream(cut(codes, 9)))
    torch.testing.assert_close(found, expected, atol=tolerance * float(expected.abs().max()), rtol=0)


def test_some_of_the_codebooks_can_be_decoded(folders: Folders) -> None:
    ours, theirs = folders.load("release"), folders.load()
    codebooks = min(2, ours.codebooks)
    torch.manual_seed(3)
    wave = torch.randn(2, 10 * HOP)
    codes = ours.encode(wave, codebooks=codebooks)
    assert torch.equal(theirs.encode(wave, codebooks=codebooks).values, codes.values)
    torch.testing.assert_close(theirs.decode(codes), ours.decode(codes), atol=SINGLE, rtol=SINGLE)
    expected = joined(ours.decode_stream(cut(codes.values[0], 5)))
    found = joined(theirs.decode_stream(cut(codes.values[0], 5)))
    torch.testing.assert_close(found, expected, atol=SINGLE, rtol=SINGLE)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_loaded_exports_streams_keep_the_contract(check: Callable[[Case], None], folders: Folders) -> None:
    ours, theirs = folders.load("release"), folders.load()

    def encode(x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        codes, counts = ours.model.encode(x[..., 0].float(), lengths)
        return codes if ours.codebooks > 1 else codes[..., None], counts

    def decode(x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        wave, _ = ours.model.decode(x.long(), lengths)
        return wave.unflatten(1, (-1, HOP)).double(), lengths

    random.seed(0)
    torch.manual_seed(0)
    check(Case(theirs.model.encoding(), encode, dim=1, longest=12 * HOP, tolerance=0))
    if ours.causal:
        case = Case(theirs.model.decoding(), decode, ours.codebooks, longest=60, tolerance=SINGLE, codes=ours.size)
        check(case)
    else:
        with pytest.raises(InputError, match="hears all latents at once"):
            theirs.model.decoding()


def test_tokens_of_an_export_are_tokens_of_its_release(folders: Folders, tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", recogniser.babble(0.7, 24_000), 24_000)
    models = [folders.release, *folders.places.values()]

    def called(*words: object) -> None:
        result = CliRunner().invoke(app, ["codec", *map(str, words)])
        assert result.exit_code == 0, result.output

    for i, model in enumerate(models):
        called("encode", tmp_path / "a.wav", "-o", tmp_path / f"{i}.skc", "--model", model)
    for i, model in enumerate(models):
        called("decode", tmp_path / f"{(i + 1) % 3}.skc", "-o", tmp_path / f"{i}.wav", "--model", model)
    waves = [torch.from_numpy(audio.read(tmp_path / f"{i}.wav", 24_000)) for i in range(3)]
    torch.testing.assert_close(waves[1], waves[0], atol=2 * SINGLE, rtol=0)  # 16 bits round
    torch.testing.assert_close(waves[2], waves[0], atol=EIGHT_BITS * float(waves[0].abs().max()), rtol=0)
    called("roundtrip", tmp_path / "a.wav", "--model", folders.places["int8"])


# What lies in a folder


def test_weights_lie_once_beside_graphs_with_plain_names(folders: Folders) -> None:
    place, causal = folders.places["fp32"], folders.load().causal
    streams = ["decoder_stream.onnx", "encoder_stream.onnx"][not causal :]
    names = ["decoder.onnx", "encoder.onnx", *streams, "meta.json", "weights.bin"]
    assert sorted(path.name for path in place.iterdir()) == sorted(names)
    assert (
        sum((place / name).stat().st_size for name in names)
        < 1.5 * (folders.release / "model.safetensors").stat().st_size + 1_000_000
    ), "the graphs themselves are small"
    for name, given, taken in (
        ("encoder", {"wave": ["batch", "samples"], "lengths": ["batch"]}, ["codes", "code_lengths"]),
        (
            "decoder",
            {"codes": ["batch", "time", folders.load().codebooks], "lengths": ["batch"]},
            ["wave", "wave_lengths"],
        ),
    ):
        graph = onnx.load(place / f"{name}.onnx", load_external_data=False).graph
        axes = {x.name: [d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim] for x in graph.input}
        assert axes == given
        assert [x.name for x in graph.output] == taken


def test_eight_bits_are_in_the_decoders_alone(folders: Folders) -> None:
    for path in folders.places["int8"].glob("*.onnx"):
        kinds = {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}
        assert ("MatMulInteger" in kinds) == path.name.startswith("decoder")


def test_the_report_names_every_graph(folders: Folders) -> None:
    said = "\n".join(folders.said)
    names = ["encoder, distances of its codes", "encoder_stream, distances of its codes", "decoder"]
    names += ["decoder_stream"] * folders.load().causal
    for name in names:
        for precision in folders.places:
            assert f"{precision} {name}: largest difference" in said
    assert "int8 decoder: the difference lies" in said
    assert "fp32 babble (1 s): 100.00 % of the codes are the model's" in said


# What is refused


def test_parity_sees_a_difference_in_every_graph(folders: Folders) -> None:
    theirs = folders.load().model
    for name, sentence in (("encoder.last.conv.bias", "they differ by"), ("decoder.head.out.weight", "they differ by")):
        model: Any = folders.load("release").model
        with torch.no_grad():
            model.get_parameter(name).flatten()[0] += 0.5
        with pytest.raises(InputError, match=sentence):
            check_networks(model, theirs, "fp32", print)


@pytest.mark.usefixtures("copies")
def test_what_differs_or_sounds_otherwise_is_not_written(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = folders.load("release")
    monkeypatch.setattr("speechkit.onnx.codec_check.UNDER_DB", 90.0)
    with pytest.raises(InputError, match=r"the int8 graphs do not sound as the model does: .* where 90 dB are needed"):
        publish(CodecExport(codec), tmp_path / "out", ["fp32", "int8"])
    model: Any = codec.model
    with torch.no_grad():
        model.decoder.head.out.weight[0] += 0.5
    with pytest.raises(InputError, match="do not compute what the model does: they differ by"):
        publish(CodecExport(codec), tmp_path / "other", ["fp32"])
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.usefixtures("copies")
def test_worse_sound_on_recordings_is_refused(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speechkit.onnx.codec_check.WORSE", -1.0)
    recordings = [("babble", [torch.from_numpy(recogniser.babble(0.3))], ["ab"])]
    with pytest.raises(InputError, match=r"nepers farther from the recordings, where -1 is allowed"):
        publish(CodecExport(folders.load("release"), recordings), tmp_path / "out", ["fp32"])


@pytest.mark.usefixtures("copies")
def test_the_command_checks_on_any_folder_with_audio(folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "sounds").mkdir()
    audio.write(tmp_path / "sounds" / "a.wav", recogniser.babble(0.4, 24_000), 24_000)
    words = ["export", str(folders.release), "-o", str(tmp_path / "out"), "--check", str(tmp_path / "sounds")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "100.00 % of the codes are the model's" in result.output
    assert "use it: speechkit codec encode FILE.wav -o FILE.skc --model" in result.output
    assert isinstance(speechkit.load(tmp_path / "out"), Codec)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--precision", "fp16"], "precisions are of fp32, int8, got fp16"),
        (["--latency-ms", "80"], "for recognisers alone, and this is a codec"),
        (["--features"], "for recognisers alone, and this is a codec"),
        (["--layout", "nemo"], "is no model for recognition but a Codec"),
    ],
)
def test_what_codecs_do_not_have_is_refused(tmp_path: Path, words: list[str], sentence: str) -> None:
    release = saved(tmp_path / "release")
    result = CliRunner().invoke(app, ["export", str(release), "-o", str(tmp_path / "out"), *words])
    assert result.exit_code == 2
    assert sentence in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


def test_an_export_is_not_exported_again(folders: Folders, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="take the release that it was made of"):
        CodecExport(folders.load())


def put(folder: Path, path: Sequence[str], value: Any) -> None:
    """Changes a value of meta.json."""
    meta = json.loads((folder / META).read_text())
    inner = meta
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (folder / META).write_text(json.dumps(meta))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda folder: put(folder, ["kind"], "radio"), "is of kind 'radio', this version of speechkit reads recog"),
        (lambda folder: put(folder, ["kind"], ["codec"]), "is of kind"),
        (lambda folder: put(folder, ["kind"], "recognizer"), "describes no recogniser"),
        (lambda folder: put(folder, ["hop"], 0), "hop must be a whole number"),
        (lambda folder: put(folder, ["codebooks"], "3"), "codebooks must be a whole number"),
        (lambda folder: put(folder, ["weights"], "00"), "hash must be 16 bytes"),
        (lambda folder: put(folder, ["weights"], "no digits"), "describes no codec"),
        (lambda folder: put(folder, ["weights"], None), "describes no codec"),
        (lambda folder: put(folder, ["graphs"], {}), "describes no codec"),
        (lambda folder: put(folder, ["graphs", "encoder"], "../encoder.onnx"), "must lie in its export's folder"),
        (lambda folder: put(folder, ["streams"], {}), "streams must be of its samples and codes"),
        (lambda folder: put(folder, [*STREAM, "stride"], 3), "streams must be of its samples and codes"),
        (lambda folder: put(folder, [*STREAM, "room"], 10**11), "room must be a whole number"),
        (lambda folder: (folder / "decoder.onnx").unlink(), "is no whole export: it lacks decoder.onnx"),
        (lambda folder: (folder / "encoder.onnx").write_bytes(b"?"), "encoder.onnx is no ONNX graph"),
        (lambda folder: (folder / "weights.bin").write_bytes(b""), "is no ONNX graph that can be run here"),
    ],
)
def test_damaged_exports_are_refused_in_one_sentence(
    change: Callable[[Path], None], sentence: str, folders: Folders, tmp_path: Path
) -> None:
    folder = tmp_path / "export"
    shutil.copytree(folders.places["fp32"], folder)
    change(folder)
    with pytest.raises(InputError, match=sentence) as caught:
        speechkit.load(folder).encode(torch.zeros(100))
    assert "\n" not in str(caught.value)


# Speech tokenizers


@pytest.fixture(scope="module")
def s3_encoder(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Frames to vectors."""
    torch.manual_seed(0)
    model = CausalS3Encoder(mels=3, dim=8, heads=2, layers=2, memory=4, context=(6, 2)).eval()
    path = tmp_path_factory.mktemp("onnx") / "s3.onnx"
    interface = export_stream(model.streaming(2), path, dim=3)

    def forward(x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        vectors, counts = model(x.float(), lengths)
        return vectors.double(), counts

    return Case(OnnxStream(path, interface), forward, dim=3, longest=90, tolerance=SINGLE)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_causal_s3_encoders_graph_keeps_the_contract(check: Callable[[Case], None], s3_encoder: Case) -> None:
    random.seed(0)
    torch.manual_seed(0)
    check(s3_encoder)


@torch.no_grad()
def test_a_graph_gives_s3_codes(tmp_path: Path) -> None:
    """From samples on, the running floor among it."""
    encoder = CausalS3Encoder(mels=20, dim=16, heads=2, layers=1, memory=3, context=(4, 1))
    quantizer = FiniteScalarQuantizer(16, [3] * 3)
    torch.nn.init.normal_(quantizer.project_down.weight)
    model = CausalS3Tokenizer(encoder, quantizer).eval()
    interface = export_stream(model.encoding(2), tmp_path / "codes.onnx", dim=1)
    wave = noise(130).float()
    (codes,) = run(OnnxStream(tmp_path / "codes.onnx", interface), [wave[:, None]])
    expected, _ = model.encode(wave[None], torch.tensor([len(wave)]))
    assert len(expected.unique()) > 3
    assert (codes[:, 0] == expected[0]).float().mean() > 0.9
