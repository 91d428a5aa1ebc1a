"""Streaming modules, and plain functions of tensors, as ONNX graphs."""

import contextlib
import hashlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx.external_data_helper import set_external_data
from torch import Tensor, nn

from speechkit.streaming.onnx import INPUTS, NEXT, OUTPUTS, Field, Interface
from speechkit.streaming.state import Chunk, Streaming, leaves, names, tree_map

OPSET = 20
EXAMPLE_ROWS = 2  # of one, the exporter would make a constant
SMALLEST_SHARED = 1024  # bytes; smaller tensors stay inside their graph
PAGE = 4096  # where memory can be mapped


class _Step(nn.Module):
    """A module's `step` as a function of plain tensors, those of an empty field left out."""

    def __init__(self, module: Streaming[Any], state: Any) -> None:
        super().__init__()
        self.module, self.state = module, state
        self.parts = nn.ModuleList(_networks(module))  # where the exporter looks for weights

    def forward(self, values: Tensor, lengths: Tensor, last: Tensor, fields: list[Tensor]) -> tuple[Tensor, ...]:
        """The inputs and the state's fields -> outputs and the next state's fields."""
        given = iter(fields)
        state = tree_map(lambda like: next(given) if like.numel() else _rows(like, values.shape[0]), self.state)
        y, new = self.module.step(Chunk(values, lengths, last), state)
        kept = [leaf for leaf, empty in zip(leaves(new), leaves(self.state), strict=True) if empty.numel()]
        return y.values, y.lengths, y.last, *kept


def _rows(empty: Tensor, batch: int) -> Tensor:
    return empty[:1].expand(batch, *empty.shape[1:])


def _networks(module: Any) -> list[nn.Module]:
    """The networks that a streaming module is made of."""
    if isinstance(module, nn.Module):
        return [module]
    parts = module if isinstance(module, list | tuple) else vars(module).values() if hasattr(module, "__dict__") else ()
    return [network for part in parts if not isinstance(part, str) for network in _networks(part)]


def export_stream(
    module: Streaming[Any], path: Path, dim: int, room: int | None = None, codes: int | None = None
) -> Interface:
    """Writes a streaming module's graph: (batch, room, dim) inputs, with a dynamic batch and a fixed state.

    Args:
        module: what to export.
        path: the file, ``.onnx``.
        dim: of the inputs.
        room: inputs that a call has room for; `chunk` where none is given.
        codes: inputs are whole numbers under this one; else they are of the state's type.

    Returns:
        What `OnnxStream` needs to know.
    """
    room = module.chunk if room is None else room
    with torch.no_grad():
        state = module.init_state(EXAMPLE_ROWS)
        fields = [leaf for leaf in leaves(state) if leaf.numel()]
        stems = [name for name, leaf in zip(names(state), leaves(state), strict=True) if leaf.numel()]
        stems = [f"state_{name}" for name in stems]
        shape = (EXAMPLE_ROWS, room, dim)
        values = torch.randint(codes, shape) if codes else torch.randn(shape, dtype=_float(fields))
        lengths, last = torch.tensor([module.first, 1]), torch.tensor([False, True])
        y, _ = module.step(
            Chunk(values, lengths, last), state
        )  # what a module prepares at its first step is then there
        export_function(
            _Step(module, state), (values, lengths, last, fields), path,
            [*INPUTS, *stems], [*OUTPUTS, *(f"{name}{NEXT}" for name in stems)],
        )  # fmt: skip
    described = [_field(name, leaf) for name, leaf in zip(stems, fields, strict=True)]
    return Interface(
        module.chunk, module.first, module.stride, module.lookahead, room, dim, _name(values), tuple(described),
        _name(y.values),
    )  # fmt: skip


def _float(fields: Sequence[Tensor]) -> torch.dtype:
    return next((leaf.dtype for leaf in fields if leaf.is_floating_point()), torch.float32)


def _field(name: str, leaf: Tensor) -> Field:
    row = leaf[0]
    same = bool((row == row.flatten()[0]).all())
    initial = row.flatten()[0].item() if same else row.tolist()
    return Field(name, _name(leaf), tuple(row.shape), initial)


def _name(x: Tensor) -> str:
    """Numpy's name of a tensor's type."""
    return str(x.dtype).removeprefix("torch.")


def export_function(
    module: nn.Module,
    inputs: tuple[Any, ...],
    path: Path,
    input_names: Sequence[str],
    output_names: Sequence[str],
    axes: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Writes the graph of a function of tensors, or lists of them.

    Args:
        axes: the names of an input's first dimensions, which are dynamic; the batch alone where nothing is said.
    """
    known: dict[str, Any] = {}

    def dynamic(x: Any, name: str = "") -> Any:
        if not isinstance(x, Tensor):
            return [dynamic(part) for part in x]
        labels = (axes or {}).get(name, ("batch",))
        return {i: known.setdefault(label, torch.export.Dim(label)) for i, label in enumerate(labels)}

    with silent():
        program = torch.onnx.export(
            module.eval(), inputs, dynamo=True, opset_version=OPSET, verbose=False,
            input_names=list(input_names), output_names=list(output_names),
            dynamic_shapes=tuple(dynamic(x, name) for x, name in zip(inputs, input_names, strict=False)),
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    _check_axes(model, len(known))
    for node in [*model.graph.node, *model.graph.value_info, *model.graph.initializer]:
        node.ClearField("metadata_props")  # where in whose files each came from, a multiple of the graph in size
    onnx.save(model, path)


def _check_axes(model: onnx.ModelProto, expected: int) -> None:
    """Refuses a graph without the dynamic sizes that it should have: the exporter fixes what it must, silently.

    Code does that by ``len(x)``, which is a number, where ``x.shape[0]`` is a symbol.
    """
    found = {axis.dim_param for item in model.graph.input for axis in item.type.tensor_type.shape.dim} - {""}
    if len(found) < expected:
        raise ValueError(f"a graph should have {expected} dynamic sizes, got {', '.join(sorted(found)) or 'none'}")


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Without what exporters and quantizers say of themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def share_weights(graphs: Sequence[Path], name: str) -> None:
    """Moves the weights of graphs that lie in one folder to a file beside them, where what is equal lies once.

    What the graphs' weights were in before is removed.
    """
    folder = graphs[0].parent
    places: dict[bytes, tuple[int, int]] = {}
    former: set[str] = set()
    fresh = folder / f"{name}.new"
    with fresh.open("wb") as file:
        for path in graphs:
            model = onnx.load(path, load_external_data=False)
            former |= {x.value for t in model.graph.initializer for x in t.external_data if x.key == "location"}
            onnx.load_external_data_for_model(model, str(folder))
            for tensor in model.graph.initializer:
                data = tensor.raw_data
                if len(data) < SMALLEST_SHARED:
                    continue
                digest = hashlib.sha256(data).digest()
                if digest not in places:
                    file.write(bytes(-file.tell() % PAGE))
                    places[digest] = (file.tell(), len(data))
                    file.write(data)
                set_external_data(tensor, name, *places[digest])
                tensor.ClearField("raw_data")
            path.write_bytes(model.SerializeToString())
    for other in former:
        (folder / other).unlink(missing_ok=True)
    fresh.rename(folder / name)
