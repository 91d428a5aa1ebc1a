"""The S3 tokenizers against what the published implementation computed, sizes read from the golden."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

import speechkit
from speechkit.codecs.quantizers import FiniteScalarQuantizer
from speechkit.codecs.s3 import S3Tokenizer, SpeechTokenizer
from speechkit.importers import s3
from speechkit.release import build_model
from tests.paths import GOLDENS, needs_goldens

pytestmark = [pytest.mark.parity, needs_goldens]
FOLDERS = sorted(path.parent for path in GOLDENS.glob("s3_*/config.json"))
DIFFERENT = 0.005  # of the codes of long recordings, whose distances from the next code are not known
each_folder = pytest.mark.parametrize("folder", FOLDERS, ids=[folder.name for folder in FOLDERS])


def values(folder: Path) -> dict[str, Tensor]:
    with np.load(folder / "io.npz") as found:
        return {name: torch.from_numpy(found[name]) for name in found.files}


def load(folder: Path) -> S3Tokenizer:
    config = json.loads((folder / "config.json").read_text())
    sizes, stride = config["config"], config["conv1_stride"]
    hidden = s3.Hidden((stride, 2), sizes["n_audio_head"])
    model = build_model(s3.read(load_file(folder / "weights.safetensors"), folder.name, hidden))
    assert isinstance(model, S3Tokenizer)
    assert model.encoder.mels == sizes["n_mels"]
    assert len(model.encoder.blocks) == sizes["n_audio_layer"]
    assert model.size == sizes["n_codebook_size"]
    assert model.codes_per_second == config["token_rate"]
    return model


def whole(wave: Tensor) -> Tensor:
    return torch.tensor([wave.shape[1]])


def batch_of(io: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    waves = [io[f"batch.wav{i}"] for i in range(len(io["batch.codes"]))]
    return pad_sequence(waves, batch_first=True), torch.tensor([len(wave) for wave in waves])


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


def watch(module: nn.Module, name: str, seen: dict[str, Tensor]) -> None:
    def note(_: nn.Module, __: Any, output: Any) -> None:
        seen[name] = output

    module.register_forward_hook(note)


@each_folder
@torch.no_grad()
def test_every_stage_is_as_published(folder: Path) -> None:
    io, model = values(folder), load(folder)
    seen: dict[str, Tensor] = {}
    for name, module in (("conv1", model.encoder.stem.conv1), ("conv2", model.encoder.stem.conv2)):
        watch(module, f"{name}_pre_gelu", seen)
    watch(model.encoder.blocks[0], "block0", seen)
    wave = io["single.wav"][None]
    mel, frames = model.front(wave, whole(wave))
    close(mel.transpose(1, 2), io["single.mel"])
    latents, counts = model.encoder(mel, frames)
    for name in ("conv1_pre_gelu", "conv2_pre_gelu", "block0"):
        close(seen[name], io[f"single.{name}"])
    close(latents, io["single.encoder"])
    assert counts.tolist() == io["single.codes_len"].tolist()
    if isinstance(model.quantizer, FiniteScalarQuantizer):
        close(model.quantizer.bounded(latents), io["single.fsq_z"])
    codes, code_lengths = model.encode(wave, whole(wave))
    assert torch.equal(codes, io["single.codes"].long())
    assert torch.equal(code_lengths, counts)


@each_folder
@torch.no_grad()
def test_a_batch_is_as_published(folder: Path) -> None:
    io, model = values(folder), load(folder)
    waves, samples = batch_of(io)
    mel, frames = model.front(waves, samples)
    close(mel.transpose(1, 2), io["batch.mel"])
    assert frames.tolist() == io["batch.mel_len"].tolist()
    latents, _ = model.encoder(mel, frames)
    codes, counts = model.encode(waves, samples)
    assert counts.tolist() == io["batch.codes_len"].tolist()
    for row, count in enumerate(counts.tolist()):
        close(latents[row, :count], io["batch.encoder"][row, :count])
        assert torch.equal(codes[row, :count], io["batch.codes"][row, :count].long())
        assert not codes[row, count:].any()


def long_wave(io: dict[str, Tensor]) -> Tensor:
    return io["long.wav_int8"].float() / 128


def different(codes: Tensor, expected: Tensor) -> float:
    return float((codes != expected.long()).double().mean())


@each_folder
@torch.no_grad()
def test_features_of_a_long_recording_are_as_published(folder: Path) -> None:
    io, model = values(folder), load(folder)
    wave = long_wave(io)[None]
    mel, _ = model.front(wave, whole(wave))
    last = io["long.mel_last50"]
    close(mel[0, -last.shape[1] :].t(), last)
    mean, deviation, frames = io["long.mel_mean_std_sum"].tolist()
    assert mel.mean().item() == pytest.approx(mean, abs=1e-4)
    assert mel.std(correction=0).item() == pytest.approx(deviation, abs=1e-4)
    assert mel.shape[1] == frames


@each_folder
@pytest.mark.parametrize("compat", [None, "reference"])
def test_long_recordings_are_as_published(folder: Path, compat: str | None) -> None:
    """Alone, and beside a short one."""
    io, model = values(folder), load(folder)
    model.compat = compat
    wave = long_wave(io)
    codes, counts = model.encode(wave[None], torch.tensor([len(wave)]))
    assert counts.tolist() == io["long.codes_len"].tolist()
    assert different(codes, io["long.codes"]) <= DIFFERENT
    short = io["batch.wav1"]
    both = pad_sequence([wave, short], batch_first=True)
    codes, counts = model.encode(both, torch.tensor([len(wave), len(short)]))
    assert counts.tolist() == io["mixed.codes_len"].tolist()
    for row, count in enumerate(counts.tolist()):
        assert different(codes[row, :count], io["mixed.codes"][row, :count]) <= DIFFERENT


@each_folder
def test_the_folder_loads_by_its_name(folder: Path) -> None:
    """Its settings lie beside the weights; the padding of a batch may hold anything."""
    io = values(folder)
    tokenizer = speechkit.load(folder)
    assert isinstance(tokenizer, SpeechTokenizer)
    waves, samples = batch_of(io)
    for row, count in enumerate(samples.tolist()):
        waves[row, count:] = torch.nan
    codes, counts = tokenizer.encode(waves, samples)
    for row, count in enumerate(counts.tolist()):
        assert torch.equal(codes[row, :count], io["batch.codes"][row, :count].long())
