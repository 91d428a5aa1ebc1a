"""NeMo's `.nemo` files: CTC, RNNT and hybrid FastConformer, streaming and full-context."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from speechkit.builder import build, check_values, shapes
from speechkit.errors import InputError
from speechkit.features import LogMel
from speechkit.importers.archive import read_members, read_state_dict
from speechkit.importers.nemo_config import Section, translate
from speechkit.release import Release, described
from speechkit.text import CharTokenizer, SentencePieceTokenizer, Tokenizer

CONFIG, WEIGHTS = "model_config.yaml", "model_weights.ckpt"
FRONT = ("preprocessor.featurizer.window", "preprocessor.featurizer.fb")

# speechkit's names to NeMo's; `{}` is the layer. A name that is not here is the same in both.
ENCODER = {
    "subsampling.strided.0": "pre_encode.conv.0",
    "subsampling.strided.1": "pre_encode.conv.2",
    "subsampling.strided.2": "pre_encode.conv.5",
    "subsampling.pointwise.0": "pre_encode.conv.3",
    "subsampling.pointwise.1": "pre_encode.conv.6",
    "subsampling.out": "pre_encode.out",
}
LAYER = {
    "feed_forward1.0": "feed_forward1.linear1",
    "feed_forward1.3": "feed_forward1.linear2",
    "feed_forward2.0": "feed_forward2.linear1",
    "feed_forward2.3": "feed_forward2.linear2",
    "norm_attention": "norm_self_att",
    "norm_convolution": "norm_conv",
    "attention.out": "self_attn.linear_out",
    "attention.position": "self_attn.linear_pos",
    "convolution.expand": "conv.pointwise_conv1",
    "convolution.depthwise": "conv.depthwise_conv",
    "convolution.norm": "conv.batch_norm",
    "convolution.project": "conv.pointwise_conv2",
}
HEADS = {
    "predictor.embedding": "decoder.prediction.embed",
    "predictor.lstm": "decoder.prediction.dec_rnn.lstm",
    "joiner.encoder": "joint.enc",
    "joiner.predictor": "joint.pred",
}


def is_nemo(path: Path) -> bool:
    """Whether a file looks like a tar archive, plain or gzip, from its first bytes."""
    with path.open("rb") as file:
        head = file.read(512)
    return head[257:262] == b"ustar" or head[:2] == b"\x1f\x8b"


def read(path: Path, length_rule: str | None = None) -> Release:
    """A `.nemo` file as a release.

    Args:
        path: the file.
        length_rule: ``floor`` or ``floor+1`` (see `LogMel`); without it, what the NeMo version that wrote the file did.
    """
    members = read_members(path, lambda name: name in (CONFIG, WEIGHTS) or _is_tokenizer(name))
    for name in (CONFIG, WEIGHTS):
        if name not in members:
            raise InputError(f"{path.name} is no NeMo model: it holds no {name}")
    config = Section(path.name, parse_yaml(members[CONFIG], f"{CONFIG} of {path.name}"))
    tokenizer = read_tokenizer(config, members)
    model = translate(config, tokenizer.vocab_size, length_rule)
    weights = read_state_dict(members[WEIGHTS], f"{WEIGHTS} of {path.name}")
    tensors = convert(weights, model, path.name)
    return Release(path.name, {"model": model}, tensors, tokenizer)


def parse_yaml(data: bytes, source: str) -> dict[str, Any]:
    """A YAML mapping."""
    try:
        config = yaml.safe_load(data)
    except Exception as error:  # PyYAML lets ValueError, KeyError, IndexError, AttributeError and more through
        raise InputError(f"{source} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise InputError(f"{source} must be a YAML mapping, got {type(config).__name__}")
    check_values(config, source)
    return config


def _is_tokenizer(name: str) -> bool:
    return re.fullmatch(r"[\w.-]+\.model", name) is not None


def read_tokenizer(config: Section, members: Mapping[str, bytes]) -> Tokenizer:
    """The SentencePiece model that the archive holds, else the characters that the configuration lists."""
    section = config.at("tokenizer")
    if section:
        kind = section.only("type", "bpe", "spe")
        named = str(section.get("model_path", "")).removeprefix("nemo:")
        found = [name for name in members if _is_tokenizer(name)]
        name = named if named in members else found[0] if len(found) == 1 else None
        if name is None:
            raise InputError(f"{config.source} has a tokenizer of type {kind!r} but no {named or 'tokenizer.model'}")
        return SentencePieceTokenizer.from_bytes(members[name], f"{name} of {config.source}")
    for place in (config.at("joint"), config.at("decoder"), config):
        symbols = place.get("vocabulary", place.get("labels"))
        if isinstance(symbols, list) and symbols:
            with described(config.source):
                return CharTokenizer([str(symbol) for symbol in symbols])
    raise InputError(f"{config.source} has neither a tokenizer nor a vocabulary")


def convert(weights: Mapping[str, Tensor], model: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """NeMo's tensors by speechkit's names, for a translated ``model`` section; every tensor must find its place."""
    with described(source):
        front, expected = build(model["front"]), shapes(model)
    _check_front(weights, front, source)
    origins = {name: published_names(name, weights, model) for name in expected}
    wanted = {origin for parts in origins.values() for origin in parts}
    missing = sorted(wanted - weights.keys())
    surplus = sorted(weights.keys() - wanted - set(FRONT))
    for verb, names in (("lack", missing), ("have unknown", surplus)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            reason = f"they {verb} {', '.join(names[:3])}{more}"
            raise InputError(f"the weights of {source} are not of the model that its configuration describes: {reason}")
    return {name: _joined(name, [weights[part] for part in origins[name]], expected[name], source) for name in expected}


def published_names(name: str, weights: Mapping[str, Tensor], model: Mapping[str, Any]) -> list[str]:
    """The NeMo tensors that make one of ours: one, or three for the fused projection of attention."""
    part, _, rest = name.partition(".")
    stem, _, leaf = name.rpartition(".")
    if part == "ctc":
        return [f"{'ctc_decoder' if 'predictor' in model else 'decoder'}.decoder_layers.0.{leaf}"]
    if stem == "joiner.out":
        # NeMo's joint has a dropout module only where its rate is not zero.
        index = next((i for i in (2, 1) if f"joint.joint_net.{i}.weight" in weights), 2)
        return [f"joint.joint_net.{index}.{leaf}"]
    if part in ("predictor", "joiner"):
        return [f"{HEADS[stem]}.{leaf}"]
    layer = re.fullmatch(r"layers\.(\d+)\.(.+)", rest)
    if layer is None:
        return [f"encoder.{ENCODER[stem.removeprefix('encoder.')]}.{leaf}"]
    prefix, inner = f"encoder.layers.{layer[1]}", layer[2].rpartition(".")[0]
    if inner == "attention.qkv":
        return [f"{prefix}.self_attn.linear_{which}.{leaf}" for which in "qkv"]
    if inner == "attention":
        return [f"{prefix}.self_attn.pos_bias_{'u' if leaf == 'content_bias' else 'v'}"]
    return [f"{prefix}.{LAYER.get(inner, inner)}.{leaf}"]


def _joined(name: str, parts: list[Tensor], shape: torch.Size, source: str) -> Tensor:
    """One of our tensors; pointwise convolutions lose their kernel's dimension of 1."""
    found = [tuple(part.shape) for part in parts]
    size = tuple(shape) if len(parts) == 1 else (shape[0] // len(parts), *shape[1:])
    squeezed = [part[..., 0] if tuple(part.shape) == (*size, 1) else part for part in parts]
    if any(tuple(part.shape) != size for part in squeezed):
        raise InputError(
            f"a tensor of {source} has another shape than its configuration says: {name} is {found}, not {size}"
        )
    numbers = [part.float() if part.is_floating_point() else part for part in squeezed]  # 8 bits cannot be joined
    return (numbers[0] if len(parts) == 1 else torch.cat(numbers)).contiguous()


def _check_front(weights: Mapping[str, Tensor], front: LogMel, source: str) -> None:
    """The window and the filter bank, where the file has them, must be those that the front end computes."""
    for name, mine in zip(FRONT, (front.window, front.mel.T[None]), strict=True):
        theirs = weights.get(name)
        if theirs is None:
            continue
        if theirs.shape != mine.shape or not torch.allclose(theirs.float(), mine, atol=1e-5):
            raise InputError(
                f"{source} was trained with another {name.rpartition('.')[2]} than its configuration describes"
            )
