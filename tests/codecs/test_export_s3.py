"""Speech tokenizers as export folders: the codes of the whole, of windows and of pieces, and what is refused."""

import json
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import pytest
import torch
from torch import Tensor

import speechkit
from speechkit import audio
from speechkit.codecs.container import TokenHeader, TokenReader, TokenWriter
from speechkit.codecs.quantizers import FiniteScalarQuantizer
from speechkit.codecs.s3 import SpeechTokenizer
from speechkit.codecs.s3_causal import CausalS3Tokenizer
from speechkit.codecs.s3_causal_layers import CausalS3Encoder
from speechkit.errors import InputError
from speechkit.onnx import META
from speechkit.onnx.publish import publish
from speechkit.onnx.s3_export import TokenizerExport
from tests.codecs.test_s3 import noise, tiny
from tests.paths import ROOT


class Pair(NamedTuple):
    """A tokenizer, its export, and where that lies."""

    ours: SpeechTokenizer
    theirs: SpeechTokenizer
    folder: Path


def exported(tokenizer: SpeechTokenizer, folder: Path) -> Pair:
    said: list[str] = []
    export = TokenizerExport(tokenizer, [("noise", [noise(80).float()], [""])])
    publish(export, folder, ["fp32"], said.append)
    assert "100.00 % of the codes are the model's" in "\n".join(said)
    found = speechkit.load(folder)
    assert isinstance(found, SpeechTokenizer)
    return Pair(tokenizer, found, folder)


@pytest.fixture(scope="module", params=["v1", "v2"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """With a codebook and a table of positions, and with rounding and rotation."""
    return exported(SpeechTokenizer(tiny(request.param)), tmp_path_factory.mktemp("s3") / "out")


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    torch.manual_seed(0)
    encoder = CausalS3Encoder(mels=20, dim=16, heads=2, layers=1, memory=3, context=(4, 1))
    quantizer = FiniteScalarQuantizer(16, [3] * 3)
    torch.nn.init.normal_(quantizer.project_down.weight)
    tokenizer = SpeechTokenizer(CausalS3Tokenizer(encoder, quantizer))
    return exported(tokenizer, tmp_path_factory.mktemp("s3") / "out")


def same(pair: Pair, wave: Tensor, lengths: Tensor) -> None:
    (codes, counts), (found, others) = (one.encode(wave, lengths) for one in pair[:2])
    assert torch.equal(others, counts)
    assert torch.equal(found, codes)
    assert len(codes.unique()) > 3


def test_recordings_shorter_and_longer_than_a_window(pair: Pair) -> None:
    """In one batch with what has no frame; beyond 30 s in windows."""
    wave = noise(3300).float()[None].repeat(4, 1)
    same(pair, wave, torch.tensor([wave.shape[1], 3000 * 160, 5000, 100]))
    same(pair, noise(50).float()[None], torch.tensor([8000]))
    assert pair.theirs.encode(torch.randn(100))[0].shape == (1, 0)


def test_an_export_says_what_the_tokenizer_says_of_itself(pair: Pair, causal: Pair) -> None:
    for ours, theirs, _ in (pair, causal):
        for name in ("rate", "hop", "size", "codes_per_second", "streams", "encoding_latency_s"):
            assert getattr(theirs, name) == getattr(ours, name)
        with pytest.raises(InputError, match="take the release that it was made of"):
            TokenizerExport(theirs)
    with pytest.raises(InputError, match="does not stream"):
        list(pair.theirs.encode_stream([torch.zeros(10)]))


def test_a_causal_one_gives_the_same_whole_and_in_pieces(causal: Pair) -> None:
    wave = noise(130).float()
    same(causal, wave[None].repeat(2, 1), torch.tensor([len(wave), 5000]))
    pieces: Iterator[Tensor] = iter(wave.split(777))
    codes = torch.cat(list(causal.theirs.encode_stream(pieces)))
    assert torch.equal(codes, causal.ours.encode(wave)[0][0])


def tokens(tokenizer: SpeechTokenizer, path: Path) -> TokenHeader:
    """What a token file of `tokenizer` says, read again."""
    wave = noise(40).float()
    with path.open("wb") as file:
        writer = TokenWriter(file, TokenHeader.of(tokenizer, path.stem))
        writer.write(tokenizer.encode(wave)[0][0].numpy())
        writer.end(len(wave))
    with path.open("rb") as file:
        return TokenReader(file, path.name).header


def test_token_files_of_an_export_and_of_its_release_name_one_model(pair: Pair, causal: Pair, tmp_path: Path) -> None:
    others = []
    for ours, theirs, _ in (pair, causal):
        header = tokens(theirs, tmp_path / "export.skc")
        header.check_model(tokens(ours, tmp_path / "release.skc"), "export.skc")
        others.append(header)
    assert others[0].weights != others[1].weights
    with pytest.raises(InputError, match=r"^export.skc holds tokens of the codec export \("):
        others[0].check_model(others[1], "export.skc")


def test_an_exported_causal_one_encodes_a_pipe_before_it_ends(causal: Pair, tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", noise(200).float().numpy())
    data, pipe = (tmp_path / "a.wav").read_bytes(), subprocess.PIPE
    words = ["codec", "encode", "-", "-o", "-", "--model", str(causal.folder)]
    with subprocess.Popen([sys.executable, "-m", "speechkit", *words], cwd=ROOT, stdin=pipe, stdout=pipe) as process:
        sink, source = cast(BinaryIO, process.stdin), cast(BinaryIO, process.stdout)
        sink.write(data[: len(data) // 2])
        sink.flush()
        came, _, _ = select.select([source], [], [], 120)
        if not came:
            process.kill()
        assert came, "no codes without the end of the input"
        reader = TokenReader(source, "a.skc")
        blocks = reader.blocks()
        codes = [next(blocks)]
        sink.write(data[len(data) // 2 :])
        sink.close()
        codes += blocks
    assert process.returncode == 0
    wave = torch.from_numpy(audio.read(tmp_path / "a.wav", causal.ours.rate))
    assert np.concatenate(codes)[:, 0].tolist() == causal.ours.encode(wave)[0][0].tolist()
    assert reader.header.weights == causal.ours.model.fingerprint()


def test_a_difference_is_seen_and_nothing_written(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copied(_: TokenizerExport, target: Path) -> None:
        shutil.copytree(pair.folder, target, dirs_exist_ok=True)

    monkeypatch.setattr(TokenizerExport, "write", copied)
    other = tiny("v1" if (pair.folder / META).read_text().count('"stride": 2') else "v2")
    with torch.no_grad():
        weight = other.encoder.blocks[0].get_parameter("mlp.0.weight")
        weight.add_(torch.randn_like(weight))
    with pytest.raises(InputError, match="they differ by"):
        publish(TokenizerExport(SpeechTokenizer(other)), tmp_path / "out", ["fp32"])
    with pytest.raises(InputError, match="precisions are of fp32, got int8"):
        publish(TokenizerExport(pair.ours), tmp_path / "out", ["int8"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"weights": "e3b0"}, "describes no speech tokenizer"),
        ({"size": 1}, "size must be a whole number from 2"),
        ({"stride": 7}, "describes no speech tokenizer"),
        ({"windows": "8"}, "windows must be a whole number"),
        ({"compat": "other"}, "describes no speech tokenizer"),
        ({"graphs": {}}, "describes no speech tokenizer"),
        ({"graphs": {"front": "gone.onnx", "encoder": "encoder.onnx"}}, "is no whole export: it lacks gone.onnx"),
        ({"graphs": {"front": "meta.json", "encoder": "encoder.onnx"}}, "meta.json is no ONNX graph"),
    ],
)
def test_damaged_exports_are_refused_in_one_sentence(
    pair: Pair, tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    folder = shutil.copytree(pair.folder, tmp_path / "export")
    (folder / META).write_text(json.dumps(json.loads((folder / META).read_text()) | change))
    with pytest.raises(InputError, match=sentence):
        speechkit.load(folder)
