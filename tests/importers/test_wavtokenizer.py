"""Published WavTokenizer checkpoints: every size, the pairing with a .yaml, and files that are none."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import speechkit
from speechkit.builder import build, shapes
from speechkit.codecs.codec import Codec
from speechkit.errors import InputError
from speechkit.importers import wavtokenizer
from tests.codecs.tiny import published
from tests.paths import GOLDENS, needs_goldens

KEYS = GOLDENS.parent / "specs" / "keys"


def yaml_of(strides: list[int]) -> str:
    hop = int(torch.tensor(strides).prod())
    features = {"class_path": "decoder.feature_extractors.EncodecFeatures", "init_args": {"dowmsamples": strides}}
    head = {"class_path": "decoder.heads.ISTFTHead", "init_args": {"n_fft": 4 * hop, "hop_length": hop}}
    return yaml.safe_dump({"model": {"init_args": {"feature_extractor": features, "head": head}}})


@needs_goldens
@pytest.mark.parametrize(("name", "strides"), [("frame75", [2, 4, 5, 8]), ("frame40", [4, 5, 5, 6])])
def test_the_published_sizes_are_read_from_the_tensors(name: str, strides: list[int]) -> None:
    """Every tensor of the published models has its place, and none is left over."""
    lines = [line.split("\t") for line in (KEYS / f"keys_wt_{name}.txt").read_text().splitlines()]
    tensors = {key: torch.zeros([int(size) for size in re.findall(r"\d+", shape)]) for key, shape, _ in lines}
    release = wavtokenizer.read(tensors, name, [yaml_of(strides[::-1])])
    assert release.config["model"]["encoder"]["strides"] == strides
    expected = shapes(release.config["model"])
    assert {key: x.shape for key, x in release.tensors.items()} == expected


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """As Lightning writes it, hyper-parameters of a class of its own among them."""
    path = tmp_path / "wavtokenizer_tiny.ckpt"
    extra = {"multiperioddisc.x": torch.ones(1), "dac.y": torch.ones(2)}
    torch.save({"state_dict": published() | extra, "epoch": 3, "hyper_parameters": Hyper(rate=1)}, path)
    return path


class Hyper(dict[str, Any]):
    """Something that only a training program knows."""


def test_a_folder_with_checkpoint_and_yaml_is_a_codec(checkpoint: Path) -> None:
    (checkpoint.parent / "config.yaml").write_text(yaml_of([3, 2]))
    for path in (checkpoint, checkpoint.parent):
        codec = speechkit.load(path)
        assert isinstance(codec, Codec)
        assert codec.hop == 6


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.pop("head.out.bias"), "lack decoder.head.out.bias"),
        (lambda t: t.pop("backbone.norm.scale.weight"), "is no WavTokenizer that can be read"),
        (lambda t: t.update({"backbone.more.weight": torch.ones(1)}), "have unknown backbone.more.weight"),
        (lambda t: t.update({"backbone.embed.bias": torch.ones(3)}), r"decoder.embed.conv.bias of shape \(3,\)"),
        (lambda t: t.update({"head.out.bias": torch.full((26,), torch.nan)}), "hold NaN or Inf"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    change: Callable[[dict[str, Tensor]], object], sentence: str, tmp_path: Path
) -> None:
    tensors = published()
    change(tensors)
    torch.save({"state_dict": tensors}, tmp_path / "x.ckpt")
    with pytest.raises(InputError, match=sentence):
        speechkit.load(tmp_path / "x.ckpt")


def test_a_yaml_of_another_model_is_refused_and_the_right_one_named(checkpoint: Path) -> None:
    (checkpoint.parent / "a.yaml").write_text(yaml_of([6, 5, 5, 4]))
    with pytest.raises(InputError, match=r"describes 40 tokens a second, but .* has 4000: .*`dowmsamples` \[3, 2\]"):
        speechkit.load(checkpoint.parent)
    (checkpoint.parent / "a.yaml").write_text("[1")
    with pytest.raises(InputError, match="does not describe a WavTokenizer"):
        speechkit.load(checkpoint.parent)


def test_of_several_yamls_one_must_fit(checkpoint: Path) -> None:
    (checkpoint.parent / "a.yaml").write_text(yaml_of([6, 5, 5, 4]))
    (checkpoint.parent / "b.yaml").write_text(yaml_of([3, 2]))
    assert speechkit.load(checkpoint).hop == 6
    (checkpoint.parent / "b.yaml").write_text(yaml_of([5, 5, 5, 4]))
    with pytest.raises(InputError, match="tokens a second, but"):
        speechkit.load(checkpoint)


def test_a_folder_with_several_models_asks_for_one(checkpoint: Path) -> None:
    checkpoint.with_name("other.ckpt").write_bytes(checkpoint.read_bytes())
    with pytest.raises(InputError, match=r"holds 2 models: name the file of one of them \(other.ckpt, wavtok"):
        speechkit.load(checkpoint.parent)


def test_nothing_of_a_checkpoint_is_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            import os

            return (os.system, (f"touch {tmp_path / 'run'}",))

    torch.save({"state_dict": published(), "hyper_parameters": Evil()}, tmp_path / "x.ckpt")
    with pytest.raises(InputError, match="is refused"):
        speechkit.load(tmp_path / "x.ckpt")
    assert not (tmp_path / "run").exists()


def test_reading_builds_the_same_network_again() -> None:
    release = wavtokenizer.read(published(), "tiny")
    assert set(build(release.config["model"]).state_dict()) == set(release.tensors)
