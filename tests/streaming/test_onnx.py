"""ONNX graphs keep the streaming contract of the modules that they were exported from."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from speechkit.asr.conformer import ConformerEncoder
from speechkit.asr.ctc import CtcHead
from speechkit.errors import InputError
from speechkit.features import LogMel
from speechkit.streaming.chain import Chain
from speechkit.streaming.export import export_function, export_stream, share_weights
from speechkit.streaming.onnx import Interface, OnnxGraph, OnnxStream
from speechkit.streaming.state import Chunk, leaves, names, size_bytes
from tests.streaming.contract import CHECKS, Case

SINGLE = 1e-4  # the graphs compute in single precision
CONTEXTS = [("chunked_limited", (4, 1)), ("regular", (4, 1))]


def _model(style: str, context: tuple[int, int]) -> tuple[LogMel, ConformerEncoder]:
    torch.manual_seed(7)
    encoder = ConformerEncoder(
        n_mels=8, dim=8, layers=1 + (style == "regular"), heads=2, conv_kernel=3, subsampling_channels=3,
        contexts=[context], style=style,
    ).eval()  # fmt: skip
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    return LogMel(sample_rate=1000, n_mels=8, n_fft=32, dither=0.0).eval(), encoder


@pytest.fixture(scope="module", params=CONTEXTS, ids=lambda item: f"{item[0]}-{item[1][0]}-{item[1][1]}")
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Path, Interface]:
    """The contract's case of a whole recogniser's graph, samples to steps; its file beside shared weights."""
    front, encoder = _model(*request.param)
    context = request.param[1]
    path = tmp_path_factory.mktemp("onnx") / "encoder.onnx"
    interface = export_stream(Chain(front, encoder.at(context)), path, dim=1)
    share_weights([path], "weights.bin")

    def forward(x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        y, counts = encoder(*front(x[..., 0].float(), lengths), context)
        return y.double(), counts

    case = Case(OnnxStream(path, interface), forward, dim=1, longest=500, tolerance=SINGLE)
    return case, path, interface


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check: Callable[[Case], None], exported: tuple[Case, Path, Interface]) -> None:
    check(exported[0])


def test_the_state_is_the_pytree_with_its_names(exported: tuple[Case, Path, Interface]) -> None:
    case, path, interface = exported
    graph = onnx.load(path, load_external_data=False).graph
    state = case.module.init_state(3)
    assert names(state) == [field.name for field in interface.state]
    assert [item.name for item in graph.input] == ["values", "lengths", "last", *names(state)]
    assert [item.name for item in graph.output][3:] == [f"{name}_next" for name in names(state)]
    assert all(len(leaf) == 3 for leaf in leaves(state))
    assert size_bytes(state) == sum(leaf[0].numel() * leaf.element_size() for leaf in leaves(state))


def test_nothing_of_the_machine_is_in_a_graph(exported: tuple[Case, Path, Interface]) -> None:
    data = exported[1].read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in data
    assert b".py" not in data


def test_an_interface_survives_json(exported: tuple[Case, Path, Interface]) -> None:
    interface = exported[2]
    assert Interface.from_dict(interface.as_dict()) == interface


def test_a_batch_that_the_exporter_fixes_is_refused(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(len(x), -1)  # a number, not a symbol

    with pytest.raises(ValueError, match="should have 1 dynamic sizes, got none"):
        export_function(Fixed(), (torch.randn(2, 3, 4),), tmp_path / "fixed.onnx", ["x"], ["y"])


def test_graphs_share_equal_weights(tmp_path: Path) -> None:
    head, other = CtcHead(64, 99), CtcHead(64, 99)
    steps = torch.randn(2, 3, 64)
    paths = [tmp_path / name for name in ("a.onnx", "b.onnx", "c.onnx")]
    for module, path in zip((head, head, other), paths, strict=True):
        export_function(module, (steps,), path, ["encoder"], ["log_probs"], {"encoder": ("batch", "steps")})
    sizes = []
    for count in (1, 2, 3):
        share_weights(paths[:count], "weights.bin")
        sizes.append((tmp_path / "weights.bin").stat().st_size)
    assert sizes[0] == sizes[1] == 64 * 100 * 4
    assert sizes[2] > 2 * sizes[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx", "c.onnx", "weights.bin"]
    for module, path in zip((head, head, other), paths, strict=True):
        torch.testing.assert_close(OnnxGraph(path)(steps)[0], module(steps))


@pytest.mark.parametrize("content", [b"", b"no graph", b"\x08\x0a"])
def test_damaged_graphs_are_refused_in_one_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match="broken.onnx is no ONNX graph"):
        OnnxGraph(path)


def test_missing_weights_are_refused_in_one_sentence(exported: tuple[Case, Path, Interface], tmp_path: Path) -> None:
    alone = tmp_path / "encoder.onnx"
    alone.write_bytes(exported[1].read_bytes())
    with pytest.raises(InputError, match="encoder.onnx is no ONNX graph that can be run here"):
        OnnxGraph(alone)


def test_a_provider_that_is_not_there_is_named(exported: tuple[Case, Path, Interface]) -> None:
    with pytest.raises(InputError, match="no MadeUpProvider, only CPUExecutionProvider|no MadeUpProvider"):
        OnnxGraph(exported[1], providers=["MadeUpProvider"])


def test_room_for_too_much_is_refused(exported: tuple[Case, Path, Interface]) -> None:
    case = exported[0]
    x = torch.zeros(1, case.module.chunk + 1, 1)
    with pytest.raises(ValueError, match=f"takes {case.module.chunk} inputs a call"):
        case.module.step(Chunk(x, torch.tensor([1]), torch.tensor([False])), case.module.init_state(1))
