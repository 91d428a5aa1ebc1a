"""The published S3 tokenizers: CosyVoice's `.onnx` graphs, and files with the names of the package s3tokenizer."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from speechkit.errors import InputError
from speechkit.release import Release

HEAD_DIM, EPSILON, LEVELS = 64, 1e-5, 3  # of all that were published
USES = 100.0  # of every row of a codebook, as if it had been in use: training on then keeps them
MARKS = ("encoder.conv1.weight", "encoder.blocks.0.attn.query.weight")
BOOK, DOWN = "quantizer._codebook.embed", "quantizer._codebook.project_down."
TABLE, MEMORY = "positional_embedding", "attn.fsmn_block.weight"  # one of them has each tokenizer

# Published names to ours.
NAMES = (
    (r"encoder\.(conv[12])\.", r"encoder.stem.\1."),
    (rf"encoder\.{TABLE}$", "encoder.positions"),
    (r"encoder\.blocks\.(\d+)\.attn\.fsmn_block\.", r"encoder.blocks.\1.attention.memory."),
    (r"encoder\.blocks\.(\d+)\.attn\.", r"encoder.blocks.\1.attention."),
    (r"encoder\.blocks\.(\d+)\.attn_ln\.", r"encoder.blocks.\1.attention_norm."),
    (r"encoder\.blocks\.(\d+)\.mlp_ln\.", r"encoder.blocks.\1.mlp_norm."),
    (r"quantizer\._codebook\.embed$", "quantizer.codebook.embed"),
    (r"quantizer\._codebook\.project_down\.", "quantizer.project_down."),
)

# What a graph calls the parts of a block, whose tensors are anonymous there.
PART = re.compile(r"blocks\.(\d+)/(attn_ln|mlp_ln|attn/(?:query|key|value|out|fsmn_block)|mlp/mlp\.[02])/\w+$")
KINDS = {"MatMul": "weight", "Mul": "weight", "Conv": "weight", "Add": "bias"}
WEIGHING = ("MatMul", "Gemm", "Conv", "LayerNormalization")  # nodes that only learned tensors come to


class Hidden(NamedTuple):
    """What no tensor shows."""

    strides: tuple[int, int] | None = None  # of the convolutions; the tokenizers with a memory have 2 and 2
    heads: int | None = None
    epsilons: tuple[float, float] = (EPSILON, EPSILON)  # before attention and before the linear layers


def is_s3(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are an S3 tokenizer's, by their names."""
    return all(name in tensors for name in MARKS) and any(name.startswith("quantizer.") for name in tensors)


def read(tensors: Mapping[str, Tensor], source: str, hidden: Hidden | None = None) -> Release:
    """The tensors of a tokenizer as a release.

    Args:
        tensors: by s3tokenizer's names.
        source: of messages.
        hidden: without it as published; without strides, a first tokenizer has 50 codes a second.

    Raises:
        InputError: it is no S3 tokenizer.
    """
    try:
        model = _config(tensors, hidden or Hidden())
    except (IndexError, ValueError) as error:
        raise InputError(f"{source} is no S3 tokenizer that can be read: {error!s:.200}") from error
    renamed = {_renamed(name): x.float() if x.is_floating_point() else x for name, x in tensors.items()}
    if BOOK in tensors:
        book = renamed["quantizer.codebook.embed"]
        renamed["quantizer.codebook.inited"] = torch.ones(1)
        renamed["quantizer.codebook.cluster_size"] = torch.full((len(book),), USES)
        renamed["quantizer.codebook.embed_avg"] = book * USES
    return Release(source, {"model": model, "api": "speechkit.codecs.s3.SpeechTokenizer"}, renamed, None)


def read_named(tensors: Mapping[str, Tensor], path: Path) -> Release:
    """As `read`; whether the first tokenizer has 25 or 50 codes a second is in its name or a `config.json` beside it.

    The two have the same tensors. What counts is `conv1_stride` or `variant` there, else ``25hz`` in the name of the
    file or its folder, as in s3tokenizer; `n_audio_head` there is the number of heads.
    """
    described = _description(path.with_name("config.json"))
    first, variant, heads = (described.get(key) for key in ("conv1_stride", "variant", "n_audio_head"))
    if not isinstance(first, int):
        named = variant if isinstance(variant, str) else f"{path.parent.name}/{path.name}"
        first = 2 if "25hz" in named.lower() or any(name.endswith(MEMORY) for name in tensors) else 1
    return read(tensors, str(path), Hidden((first, 2), heads if isinstance(heads, int) else None))


def _description(path: Path) -> dict[str, Any]:
    """What a file of settings says, those of its section `config` among it; nothing where it is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    inner = found.get("config") if isinstance(found, dict) else None
    return {**(inner if isinstance(inner, dict) else {}), **found} if isinstance(found, dict) else {}


def _config(tensors: Mapping[str, Tensor], hidden: Hidden) -> dict[str, Any]:
    """The configuration that the tensors' shapes tell of, and what they do not show."""
    memory = next((x for name, x in tensors.items() if name.endswith(MEMORY)), None)
    own = [f"{DOWN}weight"] if memory is not None else [BOOK, f"encoder.{TABLE}"]
    needed = ["encoder.conv1.weight", "encoder.blocks.0.mlp.0.weight", *own]
    lacking = [name for name in needed if name not in tensors]
    if lacking:
        raise ValueError(f"it lacks {', '.join(lacking)}")
    dim, mels, _ = tensors["encoder.conv1.weight"].shape
    blocks = {found[1] for name in tensors if (found := re.match(r"encoder\.blocks\.(\d+)\.", name))}
    heads = hidden.heads or dim // HEAD_DIM
    if not heads or dim % heads:
        raise ValueError(f"{dim} channels are not those of {heads} heads")
    at = "speechkit.codecs."
    if memory is None:
        size, width = tensors[BOOK].shape
        book = {"_target_": at + "codebook.Codebook", "size": size, "dim": width}
        quantizer = {"_target_": at + "quantizers.VectorQuantizer", "normalize": True, "codebook": book}
    else:
        digits, width = tensors[DOWN + "weight"].shape
        quantizer = {
            "_target_": at + "quantizers.FiniteScalarQuantizer",
            "dim": width, "levels": [LEVELS] * digits, "restore": False,
        }  # fmt: skip
    encoder = {
        "_target_": at + "s3_layers.S3Encoder", "mels": mels, "dim": dim, "heads": heads, "layers": len(blocks),
        "strides": list(hidden.strides or ((1, 2) if memory is None else (2, 2))),
        "inner": tensors["encoder.blocks.0.mlp.0.weight"].shape[0],
        "memory": 0 if memory is None else memory.shape[2],
        "positions": tensors[f"encoder.{TABLE}"].shape[0] if memory is None else None,
        "epsilons": list(hidden.epsilons),
    }  # fmt: skip
    return {"_target_": at + "s3.S3Tokenizer", "encoder": encoder, "quantizer": quantizer}


def _renamed(name: str) -> str:
    for pattern, ours in NAMES:
        if re.match(pattern, name):
            return re.sub(f"^{pattern}", ours, name)
    return name


def read_onnx(path: Path, heads: int | None = None) -> Release:
    """A published graph as a release.

    Args:
        path: the `.onnx`.
        heads: of attention; without it each has 64 channels, as all that were published.

    Raises:
        InputError: it is damaged, no S3 tokenizer, or has learned tensors that such a tokenizer has not.
    """
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except OSError:
        raise
    except Exception as error:  # protobuf's own errors, which belong to no common class
        raise InputError(f"{path} is no complete ONNX file") from error
    try:
        tensors, hidden = _Graph(graph).read()
    except (ValueError, TypeError, IndexError, AttributeError) as error:
        raise InputError(f"{path} is no S3 tokenizer that can be read: {error!s:.200}") from error
    if not any(name.startswith("encoder.blocks.") for name in tensors):
        raise InputError(f"{path} is an ONNX file, but no S3 tokenizer: it has no blocks of attention by that name")
    return read(tensors, str(path), hidden._replace(heads=heads))


class _Graph:
    """Finds the learned tensors of a graph by what they do and what the nodes are called."""

    def __init__(self, graph: Any) -> None:
        self.nodes = list(graph.node)
        self.held = {x.name: x for x in graph.initializer}
        self.named = set(self.held)
        for node in self.nodes:
            if node.op_type == "Constant":
                self.held |= {name: x.t for name in node.output for x in node.attribute if x.name == "value"}
            elif node.op_type == "Identity" and node.input[0] in self.held:
                self.held[node.output[0]] = self.held[node.input[0]]
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.found: dict[str, Tensor] = {}
        self.strides: list[int] = []
        self.epsilons: dict[str, set[float]] = {"attn_ln": set(), "mlp_ln": set()}

    def read(self) -> tuple[dict[str, Tensor], Hidden]:
        """The tensors by s3tokenizer's names; raises ValueError where one is surplus."""
        used: set[str] = set()
        for node in self.nodes:
            taken = dict(self._taken(node))
            used.update(taken.values())
            self.found |= {name: self._tensor(source, name) for name, source in taken.items()}
        surplus = sorted(self._weighing() - used)
        if surplus:
            raise ValueError(f"it has the unknown tensors {', '.join(surplus[:3])}")
        for name, values in self.epsilons.items():
            if len(values) > 1:
                raise ValueError(f"its normalisations {name} have different epsilons: {sorted(values)}")
        attention, mlp = (next(iter(values), EPSILON) for values in self.epsilons.values())
        strides = (self.strides[0], self.strides[1]) if len(self.strides) == 2 else None
        return self.found, Hidden(strides, None, (attention, mlp))

    def _weighing(self) -> set[str]:
        """All learned tensors that come to nodes which only such come to, or to none."""
        inputs = {name for node in self.nodes for name in node.input}
        heavy = [node for node in self.nodes if node.op_type in WEIGHING and "quantizer" not in node.name]
        weighing = {name for node in heavy for name in node.input} | (self.named - inputs)
        return {name for name in weighing if self._learned(name)}

    def _taken(self, node: Any) -> Iterator[tuple[str, str]]:
        """Names of s3tokenizer, and of the graph's tensors that they mean."""
        inputs = [name for name in node.input if self._learned(name)]
        part = PART.search(node.name)
        for name in inputs:
            if name.endswith(TABLE):
                yield f"encoder.{TABLE}", name
            elif name.endswith("project_in.bias") or node.name.endswith("project_in/Add"):
                yield DOWN + "bias", name
                yield from ((DOWN + "weight", x) for x in self._multiplied(node.input) if self._learned(x))
            elif node.name.endswith("_codebook/Pow_1"):
                yield BOOK, name
            elif node.op_type in ("Conv", "Add") and (own := re.search(r"blocks\.\d+\..*(weight|bias)$", name)):
                yield f"encoder.{own[0]}", name
            elif part and node.op_type in KINDS:
                yield f"{_path(part)}.{KINDS[node.op_type]}", name
        if node.op_type == "LayerNormalization" and part:
            yield from zip((f"{_path(part)}.weight", f"{_path(part)}.bias"), node.input[1:], strict=False)
        if node.op_type == "Conv" and not part and inputs and self._attribute(node, "group", 1) == 1:
            self.strides.append(self._attribute(node, "strides", [1])[0])
            at = f"encoder.conv{len(self.strides)}"
            yield from zip((f"{at}.weight", f"{at}.bias"), node.input[1:], strict=False)
        if part and part[2] in self.epsilons:
            self._note_epsilon(node, part[2])

    def _note_epsilon(self, node: Any, norm: str) -> None:
        """From the node, or from what is added to the variance where it is taken apart."""
        if node.op_type == "LayerNormalization":
            self.epsilons[norm].add(self._rounded(self._attribute(node, "epsilon", EPSILON)))
        elif node.op_type == "Add":
            scalars = [self.held[name] for name in node.input if name in self.held and prod(self.held[name].dims) == 1]
            self.epsilons[norm] |= {self._rounded(float(_stored(x).item())) for x in scalars}

    @staticmethod
    def _rounded(value: float) -> float:
        """As it was written, before single precision."""
        return float(f"{value:.6g}")

    def _multiplied(self, inputs: Iterable[str]) -> list[str]:
        """What comes to the product among these."""
        makers = [self.makers[name] for name in inputs if name in self.makers]
        return [name for node in makers if node.op_type == "MatMul" for name in node.input]

    def _learned(self, name: str) -> bool:
        x = self.held.get(name)
        kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
        return x is not None and x.data_type in kinds and prod(x.dims) > 1

    def _tensor(self, name: str, meant: str) -> Tensor:
        """Matrices lie as they are multiplied, so that they are turned; the table of positions is none of them."""
        held = self.held.get(name)
        if held is None:
            raise ValueError(f"its tensor {name} is computed, not stored")
        x = _stored(held)
        return x.t().contiguous() if x.dim() == 2 and not meant.endswith(TABLE) else x

    @staticmethod
    def _attribute(node: Any, name: str, otherwise: Any) -> Any:
        return next((onnx.helper.get_attribute_value(x) for x in node.attribute if x.name == name), otherwise)


def _stored(x: Any) -> Tensor:
    """A copy of what a graph holds; other files are not opened."""
    if x.data_location == onnx.TensorProto.EXTERNAL:
        raise ValueError(f"its tensor {x.name} lies in another file")
    return torch.from_numpy(numpy_helper.to_array(x).copy())


def _path(part: re.Match[str]) -> str:
    return f"encoder.blocks.{part[1]}.{part[2].removeprefix('mlp/').replace('/', '.')}"
