"""A codec's two streams as ONNX graphs, which keep the streaming contract."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from speechkit.streaming.export import export_stream
from speechkit.streaming.onnx import Interface, OnnxStream
from speechkit.streaming.stream import run
from tests.codecs import tiny
from tests.streaming.contract import CHECKS, Case

SINGLE = 1e-4  # the graphs compute in single precision


@pytest.fixture(scope="module", params=[False, True], ids=["as published", "causal"])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Samples to latents: codes of latents that are nearly as near to one row as to another would round differently."""
    model, path = tiny.codec(request.param), tmp_path_factory.mktemp("onnx") / "encoder.onnx"
    interface = export_stream(model.encoder.streaming(2), path, dim=1)

    def forward(x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        latents, counts = model.encoder(x[..., 0].float(), lengths)
        return latents.double(), counts

    return Case(OnnxStream(path, interface), forward, dim=1, longest=150, tolerance=SINGLE)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Codes to samples."""
    model, path = tiny.codec(causal=True), tmp_path_factory.mktemp("onnx") / "decoder.onnx"
    interface = export_stream(model.decoding(2), path, dim=1, codes=model.size)
    assert (interface.dtype, interface.outputs) == ("int64", "float32")
    assert Interface.from_dict(interface.as_dict()) == interface

    def forward(x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        wave, _ = model.decode(x[..., 0].long(), lengths)
        return wave.unflatten(1, (-1, model.hop)).double(), lengths

    return Case(OnnxStream(path, interface), forward, dim=1, longest=60, tolerance=SINGLE, codes=model.size)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_encoders_graph_keeps_the_contract(check: Callable[[Case], None], encoder: Case) -> None:
    random.seed(0)
    torch.manual_seed(0)
    check(encoder)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_decoders_graph_keeps_the_contract(check: Callable[[Case], None], decoder: Case) -> None:
    random.seed(0)
    torch.manual_seed(0)
    check(decoder)


@torch.no_grad()
def test_a_graph_gives_codes_as_whole_numbers(tmp_path: Path) -> None:
    model = tiny.codec(causal=True)
    interface = export_stream(model.encoding(3), tmp_path / "codes.onnx", dim=1)
    assert interface.outputs == "int64"
    stream = OnnxStream(tmp_path / "codes.onnx", Interface.from_dict(interface.as_dict()))
    wave = torch.randn(1000)
    (codes,) = run(stream, [wave[:, None]])
    expected, _ = model.encode(wave[None], torch.tensor([1000]))
    assert codes.dtype == torch.int64
    assert (codes[:, 0] == expected[0]).float().mean() > 0.98
