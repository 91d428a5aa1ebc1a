"""`speechkit codec` with speech tokenizers: tokens of files and pipes, and no way back to sound."""

import json
import subprocess
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from speechkit import audio, cli, hub, load
from speechkit.builder import build
from speechkit.codecs.container import TokenReader
from tests.asr.tiny import babble
from tests.codecs.test_s3 import tiny
from tests.importers.test_s3 import published
from tests.paths import ROOT

RATE = 16_000
Run = Callable[..., tuple[int, str, str]]


def saved(folder: Path, causal: bool) -> Path:
    """A release of a tokenizer with random weights."""
    at = "speechkit.codecs."
    encoder: dict[str, Any] = {"mels": 20, "dim": 32, "heads": 2, "layers": 1, "memory": 5}
    encoder |= (
        {"_target_": at + "s3_causal_layers.CausalS3Encoder", "context": [8, 3]}
        if causal
        else {"_target_": at + "s3_layers.S3Encoder"}
    )
    quantizer = {"_target_": at + "quantizers.FiniteScalarQuantizer", "dim": 32, "levels": [3] * 4}
    kind = "s3_causal.CausalS3Tokenizer" if causal else "s3.S3Tokenizer"
    config = {
        "api": at + "s3.SpeechTokenizer",
        "model": {"_target_": at + kind, "encoder": encoder, "quantizer": quantizer},
    }
    torch.manual_seed(0)
    model = build(config["model"])
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return hub.save(folder, config, model, None, "a card")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    saved(folder / "causal", True)
    saved(folder / "whole", False)
    save_file(published(tiny("v2")), folder / "speech_tokenizer_v2_25hz.safetensors")
    return folder


@pytest.fixture
def codec(capsys: pytest.CaptureFixture[str]) -> Run:
    """`speechkit codec` with these words: exit code and what it printed."""

    def started(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main(["codec", *map(str, arguments)])
        code = ended.value.code
        return (code if isinstance(code, int) else 0, *capsys.readouterr())

    return started


def tokens(path: Path) -> tuple[TokenReader, list[int]]:
    with path.open("rb") as file:
        reader = TokenReader(file, path.name)
        return reader, np.concatenate(list(reader.blocks()))[:, 0].tolist()


@pytest.mark.parametrize("model", ["causal", "whole", "speech_tokenizer_v2_25hz.safetensors"])
def test_a_file_has_the_tokens_of_the_tokenizer(codec: Run, models: Path, tmp_path: Path, model: str) -> None:
    wave = babble(2.3)[:-17]
    audio.write(tmp_path / "a.wav", wave)
    assert codec("encode", tmp_path / "a.wav", "-o", tmp_path / "a.skc", "--model", models / model) == (0, "", "")
    reader, codes = tokens(tmp_path / "a.skc")
    tokenizer = load(models / model)
    expected, _ = tokenizer.encode(torch.from_numpy(audio.read(tmp_path / "a.wav", RATE)))
    assert codes == expected[0].tolist()
    assert (reader.samples, reader.header.model, reader.header.hop) == (len(wave), model, 640)
    code, said, _ = codec("info", tmp_path / "a.skc", "--json")
    assert code == 0
    assert json.loads(said)["codes"] == len(codes)


@pytest.mark.parametrize("model", ["causal", "whole"])
def test_a_pipe_gives_what_a_file_gives(codec: Run, models: Path, tmp_path: Path, model: str) -> None:
    audio.write(tmp_path / "a.wav", babble(1.7))
    codec("encode", tmp_path / "a.wav", "-o", tmp_path / "a.skc", "--model", models / model)
    command = [sys.executable, "-m", "speechkit", "codec", "encode", "-", "-o", "-", "--model", str(models / model)]
    data = (tmp_path / "a.wav").read_bytes()
    done = subprocess.run(command, input=data, cwd=ROOT, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (tmp_path / "b.skc").write_bytes(done.stdout)
    assert tokens(tmp_path / "b.skc")[1] == tokens(tmp_path / "a.skc")[1]


def test_no_sound_comes_back(codec: Run, models: Path, tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", babble(0.5))
    codec("encode", tmp_path / "a.wav", "-o", tmp_path / "a.skc", "--model", models / "causal")
    for words in (("decode", tmp_path / "a.skc", "-o", tmp_path / "b.wav"), ("roundtrip", tmp_path / "a.wav")):
        code, _, said = codec(*words, "--model", models / "causal")
        assert code == 2
        assert said.startswith("error: no sound comes back from the tokens of ")
        assert said.count("\n") == 1
    assert not (tmp_path / "b.wav").exists()


@pytest.mark.parametrize("model", ["causal", "whole"])
def test_what_is_too_short_is_said(codec: Run, models: Path, tmp_path: Path, model: str) -> None:
    audio.write(tmp_path / "a.wav", np.zeros(159, np.float32))
    code, _, said = codec("encode", tmp_path / "a.wav", "-o", tmp_path / "a.skc", "--model", models / model)
    assert code == 2
    assert "a.wav is shorter than a token: it has 159 samples at 16000 Hz." in said
    assert not (tmp_path / "a.skc").exists()


def test_a_tokenizer_has_one_codebook(codec: Run, models: Path, tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", babble(0.5))
    words = ("encode", tmp_path / "a.wav", "-o", tmp_path / "a.skc", "--model", models / "causal")
    assert codec(*words, "--codebooks", 1)[0] == 0
    assert codec(*words, "--codebooks", 2)[2] == "error: this tokenizer has 1 codebook, not 2\n"


@pytest.mark.parametrize(
    ("name", "fetched"),
    [
        ("speech_tokenizer_v1.onnx", True), ("speech_tokenizer_v2.onnx", True), ("speech_tokenizer_v3.onnx", True),
        ("speech_tokenizer_v2.batch.onnx", False), ("flow.decoder.estimator.fp32.onnx", False),
        ("speech_tokenizer_v2_25hz.safetensors", True), ("model.safetensors", True), ("config.json", True),
        ("llm.pt", False),
    ],
)  # fmt: skip
def test_of_a_tokenizer_on_the_hub_no_more_is_fetched_than_it_needs(name: str, fetched: bool) -> None:
    assert any(fnmatch(name, pattern) for pattern in hub.FETCHED) == fetched
