"""Published S3 tokenizers: graphs named as CosyVoice's, files of s3tokenizer, every size, and files that are none."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import Tensor

import speechkit
from speechkit import hub
from speechkit.builder import shapes
from speechkit.codecs.s3 import S3Tokenizer, SpeechTokenizer
from speechkit.errors import InputError
from speechkit.importers import s3
from tests.codecs.test_s3 import KINDS, noise, tiny
from tests.paths import GOLDENS, needs_goldens

KEYS = GOLDENS.parent / "specs" / "keys"
CONVOLUTIONS = {"v1": 1519, "v2": 2216}  # numbers of the first of four anonymous tensors
each_kind = pytest.mark.parametrize("kind", KINDS)


def published(model: S3Tokenizer) -> dict[str, Tensor]:
    """The tensors of a model by s3tokenizer's names."""
    names = {
        "encoder.stem.": "encoder.", "encoder.positions": "encoder.positional_embedding",
        ".attention.memory.": ".attn.fsmn_block.", ".attention.": ".attn.", ".attention_norm.": ".attn_ln.",
        ".mlp_norm.": ".mlp_ln.", "quantizer.codebook.": "quantizer._codebook.",
        "quantizer.project_down.": "quantizer._codebook.project_down.",
    }  # fmt: skip
    found = {}
    for name, x in model.state_dict().items():
        if name.endswith(("inited", "cluster_size", "embed_avg")):
            continue
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        found[name] = x
    return found


class Graph:
    """Writes tensors into a graph with the nodes and names of the published ones; it computes nothing."""

    def __init__(self, kind: str, tensors: dict[str, Tensor], epsilon: float = 1e-5) -> None:
        self.kind, self.tensors, self.epsilon = kind, tensors, epsilon
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.anonymous = 2000
        self._stem()
        for i in sorted({int(found[1]) for name in tensors if (found := re.search(r"blocks\.(\d+)", name))}):
            self._block(i)
        self._quantizer()

    def node(self, kind: str, name: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        """Adds a node; the name of what it gives."""
        output = output or f"{name}_output_0"
        self.nodes.append(helper.make_node(kind, inputs, [output], name, **attributes))
        return output

    def initializer(self, x: Tensor, name: str | None = None, kind: str = "MatMul") -> str:
        """Adds a stored tensor; its name."""
        self.anonymous += 1
        name = name or f"onnx::{kind}_{self.anonymous}"
        self.initializers.append(numpy_helper.from_array(x.contiguous().numpy(), name))
        return name

    def constant(self, name: str, x: Tensor) -> str:
        """Adds a node that gives a tensor."""
        return self.node("Constant", name, [], value=numpy_helper.from_array(x.contiguous().numpy()))

    def _stem(self) -> None:
        x = "feats"
        first = CONVOLUTIONS.get(self.kind)
        for i, (conv, stride) in enumerate((("conv1", 1 if self.kind == "v1" else 2), ("conv2", 2))):
            names = [f"onnx::Conv_{first + 2 * i + j}" for j in (0, 1)] if first else ["", ""]
            if self.kind == "v1_25hz":
                names = [f"encoders.{conv}.weight", f"encoders.{conv}.bias"]
            parts = ("weight", "bias")
            held = [self.initializer(self.tensors[f"encoder.{conv}.{p}"], n) for p, n in zip(parts, names, strict=True)]
            masked = self.node("Mul", f"/Mul_{i}", [x, "mask"])
            x = self.node("Conv", f"/{conv}/Conv", [masked, *held], strides=[stride], pads=[1, 1], kernel_shape=[3])
        if (table := self.tensors.get("encoder.positional_embedding")) is not None:
            self.node("Slice", "/Slice", [self.initializer(table, "encoders.positional_embedding"), "starts", "ends"])

    def _norm(self, at: str, name: str) -> None:
        weight, bias = (self.tensors[f"encoder.{name}.{part}"] for part in ("weight", "bias"))
        if self.kind == "v2":
            held = [self.initializer(weight, f"encoders.{name}.weight"), self.initializer(bias)]
            epsilon = self.epsilon if "attn" in name else 1e-5
            self.node("LayerNormalization", f"{at}/LayerNormalization", ["x", *held], axis=-1, epsilon=epsilon)
            return
        scalar = self.constant(f"{at}/Constant_1", torch.tensor(self.epsilon if "attn" in name else 1e-5))
        self.node("Pow", f"{at}/Pow", ["x", self.constant(f"{at}/Constant", torch.tensor(2.0))])
        self.node("Add", f"{at}/Add_2" if self.kind == "v3" else f"{at}/Add", ["variance", scalar])
        if self.kind == "v3":
            self.node("Mul", f"{at}/Mul", ["x", self.constant(f"{at}/Constant_2", weight)])
            self.node("Add", f"{at}/Add", ["x", self.initializer(bias, f"{name}.bias")])
        else:
            self.node("Mul", f"{at}/Mul", ["x", self.initializer(weight)])
            self.node("Add", f"{at}/Add_1", ["x", self.initializer(bias)])

    def _block(self, i: int) -> None:
        at = f"/blocks.{i}"
        self._norm(f"{at}/attn_ln", f"blocks.{i}.attn_ln")
        self._norm(f"{at}/mlp_ln", f"blocks.{i}.mlp_ln")
        for theirs, part in (
            *((f"attn/{name}", f"attn.{name}") for name in ("query", "key", "value", "out")),
            ("mlp/mlp.0", "mlp.0"),
            ("mlp/mlp.2", "mlp.2"),
        ):
            name = f"encoder.blocks.{i}.{part}"
            product = self.node(
                "MatMul", f"{at}/{theirs}/MatMul", ["x", self.initializer(self.tensors[f"{name}.weight"].t())]
            )
            if f"{name}.bias" in self.tensors:
                self.node("Add", f"{at}/{theirs}/Add", [self.initializer(self.tensors[f"{name}.bias"]), product])
        memory = self.tensors.get(f"encoder.blocks.{i}.attn.fsmn_block.weight")
        if memory is not None:
            anonymous = self.kind == "v2"
            held = self.initializer(memory, None if anonymous else f"blocks.{i}.attn.fsmn_block.weight")
            name = f"{at}/attn/fsmn_block/Conv" if anonymous else f"{at}/attn/Conv"
            self.node("Conv", name, ["x", held], group=len(memory), strides=[1])
        self.node("Mul", f"{at}/attn/Mul", ["x", self.initializer(torch.ones(4, 64), f"cosines_{i}")])  # no weights

    def _quantizer(self) -> None:
        if (book := self.tensors.get("quantizer._codebook.embed")) is not None:
            at = "/quantizer/rq/model/layers.0/_codebook"
            held = self.initializer(book.t())
            self.node("Pow", f"{at}/Pow_1", [held, self.constant(f"{at}/Constant", torch.tensor(2.0))])
            self.node("MatMul", f"{at}/MatMul", ["x", held])
            return
        weight, bias = (self.tensors[f"quantizer._codebook.project_down.{part}"] for part in ("weight", "bias"))
        held = self.initializer(weight.t(), "onnx::MatMul_2536")
        product = self.node("MatMul", "/quantizer/project_in/MatMul", ["x", held])
        self.node("Add", "/quantizer/project_in/Add", [self.initializer(bias, "quantizer.project_in.bias"), product])

    def save(self, path: Path) -> Path:
        """Writes the file."""
        feats = helper.make_tensor_value_info("feats", TensorProto.FLOAT, [1, None, None])
        graph = helper.make_graph(self.nodes, "main_graph", [feats], [], self.initializers)
        onnx.save(helper.make_model(graph), path)
        return path


def same_codes(path: Path, model: S3Tokenizer) -> SpeechTokenizer:
    """What `path` holds, after it gave what `model` gives."""
    tokenizer = speechkit.load(path)
    assert isinstance(tokenizer, SpeechTokenizer)
    wave = noise(130).float()
    expected, _ = model.encode(wave[None], torch.tensor([len(wave)]))
    codes, _ = tokenizer.encode(wave)
    assert torch.equal(codes, expected)
    assert len(codes.unique()) > 3
    return tokenizer


@needs_goldens
@pytest.mark.parametrize("name", ["v1", "v1_25hz", "v2_25hz", "v3_25hz"])
def test_the_published_sizes_are_read_from_the_tensors(name: str) -> None:
    """Every tensor of the published models has its place, and none is left over; 500 MB and more are not made."""
    lines = [line.split("\t") for line in (KEYS / f"keys_speech_tokenizer_{name}.txt").read_text().splitlines()]
    tensors = {
        key: torch.zeros([int(size) for size in re.findall(r"\d+", shape)], device="meta") for key, shape, _ in lines
    }
    release = s3.read_named(tensors, Path(f"speech_tokenizer_{name}.pt"))
    encoder = release.config["model"]["encoder"]
    assert (encoder["dim"], encoder["heads"], encoder["layers"]) == (1280, 20, 12 if "v3" in name else 6)
    assert encoder["strides"] == ([1, 2] if name == "v1" else [2, 2])
    assert {key: x.shape for key, x in release.tensors.items()} == shapes(release.config["model"])


@each_kind
def test_a_graph_gives_the_same_codes(kind: str, tmp_path: Path) -> None:
    model = tiny(kind)
    path = Graph(kind, published(model)).save(tmp_path / "speech_tokenizer.onnx")
    for place in (path, tmp_path):
        tokenizer = same_codes(place, model)
        assert tokenizer.codes_per_second == model.codes_per_second


@pytest.mark.parametrize("kind", ["v1", "v2", "v3"])
def test_the_epsilon_is_the_graphs(kind: str, tmp_path: Path) -> None:
    path = Graph(kind, published(tiny(kind)), epsilon=1e-6).save(tmp_path / "x.onnx")
    model = speechkit.load(path).model
    assert [block.attention_norm.eps for block in model.encoder.blocks] == [1e-6] * len(model.encoder.blocks)
    assert [block.mlp_norm.eps for block in model.encoder.blocks] == [1e-5] * len(model.encoder.blocks)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@each_kind
def test_a_file_of_s3tokenizer_gives_the_same_codes(kind: str, suffix: str, tmp_path: Path) -> None:
    """The first tokenizers are told apart by their names, as there."""
    model = tiny(kind)
    path = tmp_path / f"speech_tokenizer_{kind}.{suffix}"
    tensors = {name: x.clone() for name, x in published(model).items()}
    if suffix == "pt":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    for place in (path, tmp_path):
        same_codes(place, model)


def test_settings_beside_the_weights_tell_what_no_tensor_shows(tmp_path: Path) -> None:
    save_file(published(tiny("v1_25hz")), tmp_path / "weights.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"variant": "speech_tokenizer_v1_25hz"}))
    assert speechkit.load(tmp_path).codes_per_second == 25
    (tmp_path / "config.json").write_text(json.dumps({"conv1_stride": 1, "config": {"n_audio_head": 2}}))
    tokenizer = speechkit.load(tmp_path)
    assert tokenizer.codes_per_second == 50
    assert tokenizer.model.encoder.blocks[0].attention.heads == 2
    (tmp_path / "config.json").write_text("[1")
    assert speechkit.load(tmp_path).codes_per_second == 50


@pytest.mark.parametrize("kind", ["v1", "v3"])
def test_what_is_read_can_be_kept_as_a_release(kind: str, tmp_path: Path) -> None:
    model = tiny(kind)
    release = s3.read_onnx(Graph(kind, published(model)).save(tmp_path / "x.onnx"))
    folder = hub.save(tmp_path / "release", release.config, speechkit.load(tmp_path / "x.onnx").model, None, "# x")
    same_codes(folder, model)


def test_reference_merging_is_a_choice(tmp_path: Path) -> None:
    path = Graph("v2", published(tiny("v2"))).save(tmp_path / "x.onnx")
    wave = noise(5201).float()
    assert speechkit.load(path).encode(wave)[1].tolist() == [1301]
    assert speechkit.load(path, compat="reference").encode(wave)[1].tolist() == [1251]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.pop("encoder.blocks.1.mlp.2.bias"), "lack encoder.blocks.1.mlp.2.bias"),
        (lambda t: t.pop("encoder.conv2.bias"), "lack encoder.stem.conv2.bias"),
        (lambda t: t.pop("quantizer._codebook.project_down.bias"), "lack quantizer.project_down.bias"),
        (
            lambda t: t.pop("quantizer._codebook.project_down.weight"),
            "it lacks quantizer._codebook.project_down.weight",
        ),
        (lambda t: t.update({"encoder.ln_post.weight": torch.ones(64)}), "have unknown encoder.ln_post.weight"),
        (
            lambda t: t.update({"encoder.blocks.0.attn.key.bias": torch.ones(64)}),
            "unknown encoder.blocks.0.attention.key.b",
        ),
        (lambda t: t.update({"encoder.conv1.bias": torch.ones(3)}), r"encoder.stem.conv1.bias of shape \(3,\)"),
        (lambda t: t.update({"encoder.conv1.bias": torch.full((64,), torch.nan)}), "hold NaN or Inf"),
        (lambda t: t.update({"encoder.conv1.weight": torch.ones(40, 20, 3)}), "40 channels are not those of 0 heads"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    change: Callable[[dict[str, Tensor]], object], sentence: str, tmp_path: Path
) -> None:
    tensors = {name: x.clone() for name, x in published(tiny("v2")).items()}
    change(tensors)
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=sentence):
        speechkit.load(tmp_path / "x.safetensors")


def without(end: str) -> Callable[[Graph], None]:
    """Takes the nodes of a name out, and what only they need."""

    def change(graph: Graph) -> None:
        gone = [node for node in graph.nodes if node.name.endswith(end)]
        assert gone
        graph.nodes = [node for node in graph.nodes if node not in gone]
        needed = {name for node in graph.nodes for name in node.input}
        graph.initializers = [x for x in graph.initializers if x.name in needed]

    return change


def added(kind: str, name: str, *shape: int) -> Callable[[Graph], None]:
    """Puts a node with a tensor of its own in."""

    def change(graph: Graph) -> None:
        graph.node(kind, name, ["x", graph.initializer(torch.ones(*shape), "more")])

    return change


def elsewhere(graph: Graph) -> None:
    x = graph.initializers[0]
    x.ClearField("raw_data")
    x.data_location = TensorProto.EXTERNAL
    x.external_data.add(key="location", value="../../secret")


@pytest.mark.parametrize(
    ("kind", "change", "sentence"),
    [
        ("v1", without("/blocks.1/attn/query/Add"), "lack encoder.blocks.1.attention.query.bias"),
        ("v1", without("/Slice"), "it lacks encoder.positional_embedding"),
        ("v1", without("_codebook/Pow_1"), "it lacks quantizer._codebook.embed"),
        ("v2", without("/blocks.0/mlp_ln/LayerNormalization"), "lack encoder.blocks.0.mlp_norm.weight"),
        ("v3", without("/blocks.0/attn/Conv"), "lack encoder.blocks.0.attention.memory.weight"),
        ("v3", without("/blocks.2/attn/Conv"), "lack encoder.blocks.2.attention.memory.weight"),
        ("v3", without("/conv2/Conv"), "lack encoder.stem.conv2.weight"),
        ("v1", added("MatMul", "/ln_post/MatMul", 64, 64), "it has the unknown tensors more"),
        ("v2", added("LayerNormalization", "/ln_post/LayerNormalization", 64), "it has the unknown tensors more"),
        ("v2", added("Conv", "/conv3/Conv", 64, 64, 3), "have unknown encoder.conv3.weight"),
        ("v3", added("Add", "/blocks.0/attn/key/Add", 64), "have unknown encoder.blocks.0.attention.key.bias"),
        ("v3", lambda graph: graph.initializer(torch.ones(2), "left"), "it has the unknown tensors left"),
        ("v2", elsewhere, "its tensor .* lies in another file"),
    ],
)
def test_graphs_that_do_not_fit_say_why(
    kind: str, change: Callable[[Graph], object], sentence: str, tmp_path: Path
) -> None:
    graph = Graph(kind, published(tiny(kind)))
    change(graph)
    with pytest.raises(InputError, match=sentence) as refusal:
        speechkit.load(graph.save(tmp_path / "x.onnx"))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("x.onnx", b"", "is no S3 tokenizer|but no S3 tokenizer"),
        ("x.onnx", b"nothing of the kind", "is no complete ONNX file"),
        ("x.safetensors", b"", "is no complete safetensors file"),
        ("x.safetensors", b"\xff" * 64, "is no complete safetensors file"),
        ("x.pt", b"PK\x03\x04rest", "is no complete PyTorch file"),
    ],
)
def test_damaged_files_are_refused(name: str, content: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    for place in (tmp_path / name, tmp_path):
        with pytest.raises(InputError, match=sentence):
            speechkit.load(place)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_truncated_graphs_are_refused(part: float, tmp_path: Path) -> None:
    path = Graph("v2", published(tiny("v2"))).save(tmp_path / "x.onnx")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(InputError, match="is no complete ONNX file"):
        speechkit.load(path)


def test_tensors_of_something_else_are_refused(tmp_path: Path) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="says nothing of its model"):
        speechkit.load(tmp_path)


def test_a_graph_of_something_else_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["y"], "/Relu")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    onnx.save(helper.make_model(helper.make_graph([node], "g", values[:1], values[1:])), tmp_path / "x.onnx")
    with pytest.raises(InputError, match="is an ONNX file, but no S3 tokenizer"):
        speechkit.load(tmp_path / "x.onnx")
