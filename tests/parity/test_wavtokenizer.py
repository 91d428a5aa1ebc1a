"""WavTokenizer against what the published implementation computed, sizes read from the golden."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from speechkit.codecs.codebook import Codebook, k_means
from speechkit.codecs.quantizers import VectorQuantizer
from speechkit.codecs.wavtokenizer import WavTokenizer
from speechkit.importers import wavtokenizer
from speechkit.release import build_model
from speechkit.streaming.stream import run
from tests.paths import GOLDENS, needs_goldens

pytestmark = [pytest.mark.parity, needs_goldens]
FOLDERS = sorted(
    path.parent
    for path in GOLDENS.glob("*/config.json")
    if json.loads(path.read_text()).get("system") == "wavtokenizer"
)
CASES = [(folder, case) for folder in FOLDERS for case in json.loads((folder / "config.json").read_text())["cases"]]
each_case = pytest.mark.parametrize(("folder", "case"), CASES, ids=[f"{f.name}-{c['name']}" for f, c in CASES])


def values(folder: Path) -> dict[str, Tensor]:
    with np.load(folder / "io.npz") as found:
        return {name: torch.from_numpy(found[name]) for name in found.files}


def load(folder: Path) -> WavTokenizer:
    model = build_model(wavtokenizer.read(load_file(folder / "weights.safetensors"), folder.name))
    assert isinstance(model, WavTokenizer)
    return model


@pytest.fixture
def seen() -> dict[str, Tensor]:
    """What modules that were `watch`ed gave last."""
    return {}


def watch(module: nn.Module, name: str, seen: dict[str, Tensor]) -> None:
    def note(_: nn.Module, __: Any, output: Any) -> None:
        seen[name] = output[0] if isinstance(output, tuple) else output

    module.register_forward_hook(note)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


@each_case
@torch.no_grad()
def test_every_stage_is_as_published(folder: Path, case: dict[str, Any], seen: dict[str, Tensor]) -> None:
    io, model = values(folder), load(folder)
    decoder = model.decoder
    decoder.use(case["bandwidth_id"])
    stages: dict[str, nn.Module] = {
        "enc_pre_lstm": model.encoder.downs[-1], "enc_post_lstm": model.encoder.lstm, "encoder": model.encoder.last,
        "bb_res1": decoder.mixing[1], "bb_attn": decoder.mixing[2], "bb_posnet": decoder.between.group,
        "bb_convnext0": decoder.blocks[0], "backbone": decoder.head.norm, "head_linear": decoder.head.out,
    }  # fmt: skip
    for name, module in stages.items():
        watch(module, name, seen)
    wave = io[f"{case['name']}.wav_in"]
    codes, counts = model.encode(wave, torch.full((len(wave),), wave.shape[1]))
    assert torch.equal(codes, io[f"{case['name']}.codes"][0])
    features = model.quantizer.decode(codes)
    close(features.transpose(1, 2), io[f"{case['name']}.features"])
    close(features.transpose(1, 2), io[f"{case['name']}.features_from_codes"])
    samples, lengths = model.decode(codes, counts)
    close(samples, io[f"{case['name']}.wav_out"])
    assert lengths.tolist() == [samples.shape[1]] * len(samples)
    compared = 0
    for name, found in seen.items():
        expected = io.get(f"{case['name']}.{name}")
        if expected is not None:
            timed = name in ("backbone", "head_linear") or name.startswith("enc")  # as published: frames last or first
            close(found if timed else found.transpose(1, 2), expected)
            compared += 1
    assert compared >= 4


@each_case
@torch.no_grad()
def test_streams_give_the_published_codes(folder: Path, case: dict[str, Any]) -> None:
    io, model = values(folder), load(folder)
    for row, expected in zip(io[f"{case['name']}.wav_in"], io[f"{case['name']}.codes"][0], strict=True):
        for chunks in (1, 6):
            (codes,) = run(model.encoding(chunks), [row[:, None]])
            assert torch.equal(codes[:, 0], expected)


@each_case
@torch.no_grad()
def test_other_rows_and_padding_change_nothing(folder: Path, case: dict[str, Any]) -> None:
    """In one batch with noise, a shorter row and an empty one, behind each of which there is more noise."""
    torch.manual_seed(0)
    io, model = values(folder), load(folder)
    model.decoder.use(case["bandwidth_id"])
    wave = io[f"{case['name']}.wav_in"][:1]
    batch = 0.1 * torch.randn(4, wave.shape[1] + 5000)
    batch[0, : wave.shape[1]] = wave[0]
    lengths = torch.tensor([wave.shape[1], batch.shape[1], 700, 0])
    codes, counts = model.encode(batch, lengths)
    assert counts.tolist() == [-(-int(n) // model.hop) for n in lengths]
    assert torch.equal(codes[0, : counts[0]], io[f"{case['name']}.codes"][0, 0])
    samples, sample_lengths = model.decode(codes, counts)
    close(samples[0, : sample_lengths[0]], io[f"{case['name']}.wav_out"][0])
    assert not samples[3].any()


TRAIN = GOLDENS / "wavtokenizer_train"


def test_the_codebook_moves_as_published() -> None:
    """Three steps of training."""
    io, config = values(TRAIN), json.loads((TRAIN / "config.json").read_text())["vq"]
    size, dim = io["vq.0.before.embed"].shape
    book = Codebook(size, dim, config["decay"], config["epsilon"], dead_code="reference")
    quantizer = VectorQuantizer(book).train()
    buffers = ("embed", "embed_avg", "cluster_size")
    book.inited.fill_(1)
    for name in buffers:
        getattr(book, name).copy_(io[f"vq.0.before.{name}"])
    for step in range(3):
        found = quantizer(io[f"vq.{step}.x"].transpose(1, 2))
        assert torch.equal(found.codes, io[f"vq.{step}.codes"][0])
        close(found.values.transpose(1, 2), io[f"vq.{step}.quantized"])
        close(found.loss, io[f"vq.{step}.commit"])
        for name in buffers:
            close(getattr(book, name), io[f"vq.{step}.after.{name}"])


def test_k_means_are_as_published() -> None:
    io, config = values(TRAIN), json.loads((TRAIN / "config.json").read_text())["kmeans"]
    samples = io["kmeans.samples"]
    means, counts = k_means(samples, samples[: len(io["kmeans.means"])], config["iters"])
    close(means, io["kmeans.means"])
    assert counts.long().tolist() == io["kmeans.bins"].tolist()
