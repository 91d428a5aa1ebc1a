"""FunASR's Paraformer folders: `config.yaml`, `model.pt`, `am.mvn` and `tokens.json`."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from speechkit.errors import InputError
from speechkit.importers.section import Section

Replacement = str | Callable[[re.Match[str]], str]

# Published names to ours; the first encoder layer, of another width, is a list of its own there.
NAMES: tuple[tuple[str, Replacement], ...] = (
    (r"^encoder\.encoders0\.0\.", "encoder.layers.0."),
    (r"^encoder\.encoders\.(\d+)\.", lambda found: f"encoder.layers.{int(found[1]) + 1}."),
    (r"^(encoder\..+)self_attn\.linear_q_k_v\.", r"\1attention.qkv."),
    (r"^(encoder\..+)self_attn\.linear_out\.", r"\1attention.out."),
    (r"^(encoder\..+)self_attn\.fsmn_block\.", r"\1attention.memory.conv."),
    (r"^(encoder\..+)feed_forward\.w_1\.", r"\1widen."),
    (r"^(encoder\..+)feed_forward\.w_2\.", r"\1narrow."),
    (r"^decoder\.decoders3\.0\.norm1\.", "decoder.last_norm."),
    (r"^decoder\.decoders3\.0\.feed_forward\.", "decoder.last."),
    (r"^decoder\.decoders\.", "decoder.layers."),
    (r"^(decoder\..+)self_attn\.fsmn_block\.", r"\1memory.conv."),
    (r"^(decoder\..+)src_attn\.linear_q\.", r"\1query."),
    (r"^(decoder\..+)src_attn\.linear_k_v\.", r"\1key_value."),
    (r"^(decoder\..+)src_attn\.linear_out\.", r"\1out."),
    (r"^(decoder\..+)w_1\.", r"\1widen."),
    (r"^(decoder\..+)w_2\.", r"\1narrow."),
    (r"^decoder\.embed\.0\.", "decoder.embed."),
    (r"^decoder\.output_layer\.", "decoder.out."),
    (r"^(encoder|decoder)\.after_norm\.", r"\1.norm."),
    (r"^predictor\.cif_conv1d\.", "predictor.conv."),
    (r"^predictor\.cif_output\.", "predictor.out."),
)


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By our names; what has none keeps its own."""
    found = {}
    for name, value in tensors.items():
        for pattern, ours in NAMES:
            name = re.sub(pattern, ours, name)
        found[name] = value
    return found


def normalization(text: str, source: str) -> tuple[Tensor, Tensor]:
    """The shift and the scale, (numbers,) each, of an `am.mvn`, which is text of Kaldi's.

    Raises:
        InputError: it holds no such thing.
    """
    found = []
    for part in ("AddShift", "Rescale"):
        match = re.search(rf"<{part}>[^\[]*\n\s*<LearnRateCoef>\s+\S+\s+\[([^\]]*)\]", text)
        try:
            found.append(torch.tensor([float(number) for number in match[1].split()]) if match else torch.zeros(0))
        except ValueError as error:
            raise InputError(f"{source} is no am.mvn that can be read: {error}") from error
    if not len(found[0]) or len(found[0]) != len(found[1]) or not torch.cat(found).isfinite().all():
        raise InputError(f"{source} is no am.mvn that can be read: it needs as many finite shifts as scales")
    return found[0], found[1]


def model_config(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The configuration of the network.

    Raises:
        InputError: it describes another model, or one that speechkit does not have.
    """
    root = Section(source, config)
    root.only("encoder", "SANMEncoder", "SANMEncoderChunkOpt")
    root.only("decoder", "ParaformerSANMDecoder")
    root.only("predictor", "CifPredictorV2")
    encoder, decoder, predictor = (root.at(f"{part}_conf") for part in ("encoder", "decoder", "predictor"))
    front = root.at("frontend_conf")
    dim, at = encoder.integer("output_size", 256), "speechkit.asr.paraformer."
    mels, span = front.integer("n_mels", 80), front.integer("lfr_m", 1)
    return {
        "_target_": at + "Paraformer",
        "encoder": {
            "_target_": at + "SanmEncoder", "in_dim": mels * span, "dim": dim,
            "layers": encoder.integer("num_blocks", 6), **_sizes(encoder),
            "dropout": encoder.number("dropout_rate", 0.1),
        },
        "predictor": {"_target_": at + "CifPredictor", "dim": dim, "tail": predictor.number("tail_threshold", 0.45)},
        "decoder": {
            "_target_": at + "SanmDecoder", "vocab_size": root.integer("vocab_size"), "dim": dim,
            "layers": decoder.integer("att_layer_num", 6), **_sizes(decoder),
            "dropout": decoder.number("dropout_rate", 0.1),
        },
    }  # fmt: skip


def _sizes(part: Section) -> dict[str, int]:
    return {
        "heads": part.integer("attention_heads", 4),
        "inner": part.integer("linear_units", 2048),
        "kernel": part.integer("kernel_size", 11),
        "shift": int(part.number("sanm_shfit", 0)),
    }
