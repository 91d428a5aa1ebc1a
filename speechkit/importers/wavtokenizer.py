"""WavTokenizer's published checkpoints: a Lightning `.ckpt`, and the `.yaml` that belongs to it."""

import re
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
import yaml
from torch import Tensor

from speechkit.errors import InputError
from speechkit.release import Release

RATE = 24_000
GROUPS = 32  # of the published normalisations, which no tensor shows
ENCODER, BOOK = "feature_extractor.encodec.encoder.model.", "feature_extractor.encodec.quantizer.vq.layers.0._codebook."
MARK = BOOK + "embed"
UNUSED = ("feature_extractor.encodec.decoder.", "head.istft.window")
DISCRIMINATORS = {"periods": "multiperioddisc.", "resolutions": "multiresddisc.", "dac": "dac."}
TRAINING = (*DISCRIMINATORS.values(), "dacdiscriminator.", "melspec_loss.")

# Published names to ours, of what is left when weights are folded; the encoder's are by position.
NAMES = (
    (r"backbone\.embed\.", "decoder.embed.conv."),
    (r"backbone\.norm\.", "decoder.between.layer."),
    (r"backbone\.pos_net\.5\.", "decoder.between.group."),
    (r"backbone\.pos_net\.(\d)\.norm1\.", r"decoder.mixing.\1.first_half.norm."),
    (r"backbone\.pos_net\.(\d)\.conv1\.", r"decoder.mixing.\1.first_half.conv."),
    (r"backbone\.pos_net\.(\d)\.norm2\.", r"decoder.mixing.\1.second_half.norm."),
    (r"backbone\.pos_net\.(\d)\.conv2\.", r"decoder.mixing.\1.second_half.conv."),
    (r"backbone\.pos_net\.2\.norm\.", "decoder.mixing.2.norm."),
    (r"backbone\.pos_net\.2\.proj_out\.", "decoder.mixing.2.out."),
    (r"backbone\.convnext\.(\d+)\.dwconv\.", r"decoder.blocks.\1.depthwise."),
    (r"backbone\.convnext\.(\d+)\.pwconv1\.", r"decoder.blocks.\1.widen."),
    (r"backbone\.convnext\.(\d+)\.pwconv2\.", r"decoder.blocks.\1.narrow."),
    (r"backbone\.convnext\.(\d+)\.", r"decoder.blocks.\1."),
    (r"backbone\.final_layer_norm\.", "decoder.head.norm."),
    (r"head\.out\.", "decoder.head.out."),
    (re.escape(BOOK), "quantizer.codebook."),
)
ATTENTION = [f"backbone.pos_net.2.{name}." for name in "qkv"]


def read(tensors: Mapping[str, Tensor], source: str, descriptions: Sequence[str] = ()) -> Release:
    """The tensors of a checkpoint as a release.

    Args:
        tensors: by their published names.
        source: of messages.
        descriptions: the texts of the `.yaml`s beside it; all sizes are in the tensors, so that they are only compared.

    Raises:
        InputError: it is no WavTokenizer, or not that of any `.yaml`.
    """
    used = {name: x for name, x in tensors.items() if not name.startswith((*UNUSED, *TRAINING))}
    try:
        folded = _folded(used)
        model = _config(folded)
        renamed = _joined(_renamed(folded, len(model["encoder"]["strides"])))
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        raise InputError(f"{source} is no WavTokenizer that can be read: {error!s:.200}") from error
    for i, description in enumerate(descriptions):
        try:
            _compare(model, description, source)
            break
        except InputError:
            if i == len(descriptions) - 1:
                raise
    training = {
        ours: [x for name, x in tensors.items() if name.startswith(theirs)] for ours, theirs in DISCRIMINATORS.items()
    }
    return Release(source, {"model": model, "api": "speechkit.codecs.codec.Codec"}, renamed, None, training)


def _folded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights whole, which training had split into length and direction: ``g v / |v|`` (an output channel each)."""
    found = {}
    for name, x in tensors.items():
        if name.endswith("weight_v"):
            length = tensors[name.removesuffix("v") + "g"].double()
            v = x.double()
            x = (length * v / v.flatten(1).norm(dim=1).view(-1, *[1] * (v.dim() - 1))).float()
            name = name.removesuffix("_v")
        if not name.endswith("weight_g"):
            found[name] = x
    return found


def _config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The configuration that the tensors' shapes tell of."""
    positions = sorted({int(name[len(ENCODER) :].split(".")[0]) for name in tensors if name.startswith(ENCODER)})
    downs = [p for p in positions[1:-1] if f"{ENCODER}{p}.conv.conv.weight" in tensors]
    strides = [tensors[f"{ENCODER}{p}.conv.conv.weight"].shape[2] // 2 for p in downs]
    first, last = (tensors[f"{ENCODER}{p}.conv.conv.weight"] for p in (positions[0], positions[-1]))
    unit = tensors[f"{ENCODER}1.block.1.conv.conv.weight"]
    layers = [name for name in tensors if name.startswith(f"{ENCODER}{positions[-2]}.lstm.weight_hh")]
    size, dim = tensors[MARK].shape
    kinds, width = tensors["backbone.norm.scale.weight"].shape
    blocks = [name for name in tensors if re.fullmatch(r"backbone\.convnext\.\d+\.gamma", name)]
    n_fft, hop = tensors["head.out.weight"].shape[0] - 2, prod(strides)
    at = "speechkit.codecs."
    return {
        "_target_": at + "wavtokenizer.WavTokenizer",
        "rate": RATE,
        "encoder": {
            "_target_": at + "seanet.SeanetEncoder", "dim": dim, "filters": first.shape[0], "strides": strides,
            "kernel": last.shape[2], "residual_kernel": unit.shape[2], "compress": unit.shape[1] // unit.shape[0],
            "lstm_layers": len(layers),
        },
        "quantizer": {
            "_target_": at + "quantizers.VectorQuantizer",
            "codebook": {"_target_": at + "codebook.Codebook", "size": size, "dim": dim},
        },
        "decoder": {
            "_target_": at + "vocos.VocosDecoder", "in_dim": dim, "dim": width,
            "inner": tensors["backbone.convnext.0.pwconv1.weight"].shape[0], "layers": len(blocks),
            "hop": hop, "n_fft": n_fft, "kinds": kinds, "groups": GROUPS,
        },
    }  # fmt: skip


def _renamed(tensors: Mapping[str, Tensor], strides: int) -> dict[str, Tensor]:
    """By our names; pointwise convolutions that are linear layers here lose their last dimension."""
    parts = {"0.conv.conv.": "first.conv.", f"{1 + 3 * strides}.lstm.": "lstm.lstm."}
    parts[f"{3 + 3 * strides}.conv.conv."] = "last.conv."
    for i in range(strides):
        unit = f"{1 + 3 * i}."
        parts |= {unit + "block.1.conv.conv.": f"units.{i}.narrow.", unit + "block.3.conv.conv.": f"units.{i}.widen."}
        parts |= {unit + "shortcut.conv.conv.": f"units.{i}.shortcut.", f"{3 + 3 * i}.conv.conv.": f"downs.{i}.conv."}
    names = [(re.escape(ENCODER + theirs), "encoder." + ours) for theirs, ours in parts.items()] + list(NAMES)
    found = {}
    for name, x in tensors.items():
        for pattern, ours in names:
            if re.match(pattern, name):
                name = re.sub(f"^{pattern}", ours, name)
                break
        linear = name.startswith(("decoder.mixing.2.out.", *ATTENTION)) and x.dim() == 3
        found[name] = x.squeeze(-1) if linear else x
    return found


def _joined(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values in one layer."""
    for kind in ("weight", "bias"):
        tensors[f"decoder.mixing.2.qkv.{kind}"] = torch.cat([tensors.pop(part + kind) for part in ATTENTION])
    return tensors


def _compare(model: Mapping[str, Any], text: str, source: str) -> None:
    """Refuses a description of another model, and says which would fit."""
    try:
        described = yaml.safe_load(text)
        init = described["model"]["init_args"]
        head, features = init["head"]["init_args"], init["feature_extractor"]["init_args"]
        hop, strides = int(head["hop_length"]), [int(s) for s in features["dowmsamples"]]
        if hop < 1:
            raise ValueError(f"hop_length is {hop}")
    except (yaml.YAMLError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"the .yaml beside {source} does not describe a WavTokenizer ({error!s:.100})") from error
    ours = model["decoder"]["hop"]
    if hop != ours or prod(strides) != ours:
        fitting = model["encoder"]["strides"][::-1]
        raise InputError(
            f"the .yaml describes {RATE / hop:g} tokens a second, but {source} has {RATE / ours:g}: take the .yaml for "
            f"{RATE / ours:g} tokens a second, in which `hop_length` is {ours} and `dowmsamples` {fitting}"
        )
