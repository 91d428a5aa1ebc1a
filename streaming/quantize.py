"""ONNX graphs in eight bits, for CPUs, and in half precision, for GPUs."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

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


def halve(path: Path) -> None:
    """Replaces a graph by one that computes in half precision; what goes in and comes out stays in single precision.

    Log-mel features stay in single precision: half has no numbers for the energy of silence, nor for Kaldi's samples.
    """
    model = onnx.load(path)
    makers = {name: node for node in model.graph.node for name in node.output}
    kept: set[str] = set()
    waiting = [node for node in model.graph.node if node.op_type == "Log"]
    while waiting:
        node = waiting.pop()
        if node.name not in kept:
            kept.add(node.name)
            waiting += [makers[name] for name in node.input if name in makers]
    with silent():
        half = convert_float_to_float16(
            model, keep_io_types=True, op_block_list=DEFAULT_OP_BLOCK_LIST, node_block_list=sorted(kept)
        )
    _join(half.graph)
    onnx.save(half, path)


def _join(graph: onnx.GraphProto) -> None:
    """Takes out the half precision that the converter puts between any two nodes, those that stay in single too."""
    casts = [(node, onnx.helper.get_node_attr_value(node, "to")) for node in graph.node if node.op_type == "Cast"]
    halved = {node.output[0]: node for node, kind in casts if kind == onnx.TensorProto.FLOAT16}
    for node, kind in casts:
        if kind == onnx.TensorProto.FLOAT and node.input[0] in halved:
            node.input[0] = halved[node.input[0]].input[0]
    used = {name for node in graph.node for name in node.input} | {item.name for item in graph.output}
    for name in halved.keys() - used:
        graph.node.remove(halved[name])


def reduce(path: Path, precision: str, keep: Sequence[str] = ()) -> None:
    """Replaces a graph by one in ``int8`` or ``fp16``; `keep` as of `quantize`."""
    if precision == "fp16":
        halve(path)
    else:
        quantize(path, keep)
