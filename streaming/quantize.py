"""ONNX graphs in eight bits: weights stored so, activations rounded while the graph runs."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from speechkit.streaming.export import silent

PRODUCTS = ("MatMul", "Gemm")


def quantize(path: Path, keep: Sequence[str] = ()) -> None:
    """Replaces a graph by one whose products with constant weights are done in eight bits.

    Weights are unsigned, with a scale a column: products of unsigned with signed bytes are added in 16 bits by CPUs
    without VNNI, which overflow.

    Args:
        path: the graph.
        keep: endings of the names of weights that stay as they are.
    """
    model = onnx.load(path)
    graph = model.graph
    left = {x.name for x in graph.initializer if len(x.dims) != 2 or x.name.endswith(tuple(keep))}
    kept = [node.name for node in graph.node if node.op_type in PRODUCTS and left & set(node.input)]
    with silent(), tempfile.TemporaryDirectory(dir=path.parent) as folder:
        whole = Path(folder) / path.name
        onnx.save(model, whole)
        quantize_dynamic(
            whole, path, op_types_to_quantize=list(PRODUCTS), per_channel=True, nodes_to_exclude=kept,
            weight_type=QuantType.QUInt8,
        )  # fmt: skip
