"""FunASR's Paraformer folders: `config.yaml`, `model.pt`, `am.mvn` and `tokens.json`."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechkit.errors import InputError
from speechkit.importers import funasr_seaco
from speechkit.importers.nemo import parse_yaml
from speechkit.importers.section import Section
from speechkit.release import Release
from speechkit.token_list import LIST_FILE, read_list

CONFIG, MVN = "config.yaml", "am.mvn"
MARK = "predictor.cif_output.weight"

Replacement = str | Callable[[re.Match[str]], str]

# Published names to ours; the first encoder layer, of another width, is a list of its own there.
NAMES: tuple[tuple[str, Replacement], ...] = (
    *funasr_seaco.NAMES,
    (r"^encoder\.encoders0\.0\.", "encoder.layers.0."),
    (r"^encoder\.encoders\.(\d+)\.", lambda found: f"encoder.layers.{int(found[1]) + 1}."),
    (r"^(encoder\..+)self_attn\.linear_q_k_v\.", r"\1attention.qkv."),
    (r"^(encoder\..+)self_attn\.linear_out\.", r"\1attention.out."),
    (r"^(encoder\..+)self_attn\.fsmn_block\.", r"\1attention.memory.conv."),
    (r"^(encoder\..+)feed_forward\.w_1\.", r"\1widen."),
    (r"^(encoder\..+)feed_forward\.w_2\.", r"\1narrow."),
    (r"^((?:bias\.)?decoder)\.decoders3\.0\.norm1\.", r"\1.last_norm."),
    (r"^((?:bias\.)?decoder)\.decoders3\.0\.feed_forward\.", r"\1.last."),
    (r"^((?:bias\.)?decoder)\.decoders\.", r"\1.layers."),
    (r"^((?:bias\.)?decoder\..+)self_attn\.fsmn_block\.", r"\1memory.conv."),
    (r"^((?:bias\.)?decoder\..+)src_attn\.linear_q\.", r"\1query."),
    (r"^((?:bias\.)?decoder\..+)src_attn\.linear_k_v\.", r"\1key_value."),
    (r"^((?:bias\.)?decoder\..+)src_attn\.linear_out\.", r"\1out."),
    (r"^((?:bias\.)?decoder\..+)w_1\.", r"\1widen."),
    (r"^((?:bias\.)?decoder\..+)w_2\.", r"\1narrow."),
    (r"^decoder\.embed\.0\.", "decoder.embed."),
    (r"^decoder\.output_layer\.", "decoder.out."),
    (r"^(encoder|(?:bias\.)?decoder)\.after_norm\.", r"\1.norm."),
    (r"^predictor\.cif_conv1d\.", "predictor.conv."),
    (r"^predictor\.cif_output\.", "predictor.out."),
)


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By our names; what has none keeps its own; `InputError` where two become one."""
    found = {}
    for name, value in tensors.items():
        for pattern, ours in NAMES:
            name = re.sub(pattern, ours, name)
        if name in found:
            raise InputError(f"two of its tensors are {name}, by different names")
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


def read(tensors: Mapping[str, Tensor], path: Path) -> Release:
    """A model of FunASR's: the tensors of `path`, and what lies beside it.

    Raises:
        InputError: something is missing, damaged, or of a model that speechkit does not have.
    """
    config = parse_yaml(_beside(path, CONFIG), str(path.parent / CONFIG))
    tokenizer = read_list(path.parent) if _beside(path, LIST_FILE) else None
    config.setdefault("vocab_size", tokenizer.vocab_size if tokenizer else None)
    shift, scale = normalization(_beside(path, MVN).decode("utf-8", "replace"), str(path.parent / MVN))
    own = renamed({name: value.float() for name, value in tensors.items()})
    own |= {"front.joined.shift": shift, "front.joined.scale": scale}
    return Release(str(path.parent), {"model": model_config(config, str(path.parent))}, own, tokenizer)


def _beside(path: Path, name: str) -> bytes:
    try:
        return (path.parent / name).read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} is a model of FunASR's, which needs {CONFIG}, {MVN} and {LIST_FILE} beside it: {name} cannot be "
            f"read ({error.strerror or error})"
        ) from error


def model_config(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The configuration of the network.

    Raises:
        InputError: it describes another model, or one that speechkit does not have.
    """
    root = Section(source, config)
    name = root.only("model", "Paraformer", "ParaformerStreaming", "SeacoParaformer")
    streams, seaco = name == "ParaformerStreaming", name == "SeacoParaformer"
    root.only("encoder", "SANMEncoder", "SANMEncoderChunkOpt")
    root.only("decoder", "ParaformerSANMDecoder")
    root.only("predictor", "CifPredictorV3" if seaco else "CifPredictorV2")
    encoder, decoder, predictor = (root.at(f"{part}_conf") for part in ("encoder", "decoder", "predictor"))
    model, sound = root.at("model_conf"), root.at("frontend_conf")
    for part, key, *honoured in (
        (encoder, "selfattention_layer_type", "sanm"), (encoder, "normalize_before", True),
        (encoder, "concat_after", False), (encoder, "input_layer", "pe", "pe_online"),
        (decoder, "normalize_before", True), (decoder, "concat_after", False), (decoder, "use_output_layer", True),
        (decoder, "concat_embeds", False), (model, "share_embedding", False),
        (sound, "snip_edges", True), (sound, "upsacle_samples", True),
        (predictor, "threshold", 1.0), (predictor, "smooth_factor", 1.0), (predictor, "noise_threshold", 0),
        (predictor, "l_order", 1), (predictor, "r_order", 1), (predictor, "tail_mask", True),
    ):  # fmt: skip
        part.only(key, *honoured)
    dim, vocab_size = encoder.integer("output_size", 256), root.integer("vocab_size")
    front = _front(sound)
    made: dict[str, Any] = {
        "_target_": "speechkit.asr.paraformer.Paraformer",
        "front": front,
        "encoder": {
            "_target_": "speechkit.asr.sanm_encoder.SanmEncoder",
            "in_dim": front["joined"]["dim"] * front["joined"]["span"], "dim": dim,
            "layers": encoder.integer("num_blocks", 6), **_sizes(encoder),
        },
        "predictor": {
            "_target_": "speechkit.asr.paraformer.CifPredictor", "dim": dim,
            "tail": predictor.number("tail_threshold", 0.45),
        },
        "decoder": {
            "_target_": "speechkit.asr.sanm_decoder.SanmDecoder", "vocab_size": vocab_size, "dim": dim,
            "layers": decoder.integer("att_layer_num", 6), **_sizes(decoder),
        },
        "special": [i for i in (0, 1, 2) if i < vocab_size],
        "end": min(2, vocab_size - 1),
    }  # fmt: skip
    if seaco:
        made["predictor"] |= funasr_seaco.predictor(predictor)
        return made | funasr_seaco.network(root, dim, vocab_size, _sizes(root.at("seaco_decoder_conf"), 21))
    return made | {"grids": _grids(encoder) if streams else [], "whole": not streams}


def _front(front: Section) -> dict[str, Any]:
    front.only("window", "hamming")
    mels = front.integer("n_mels", 80)
    return {
        "_target_": "speechkit.low_frame_rate.LowFrameRateFbank",
        "fbank": {
            "_target_": "speechkit.fbank.KaldiFbank", "sample_rate": front.integer("fs", 16000), "n_mels": mels,
            "window_ms": front.number("frame_length", 25), "stride_ms": front.number("frame_shift", 10),
            "dither": front.number("dither", 1.0),
        },
        "joined": {
            "_target_": "speechkit.low_frame_rate.LowFrameRate", "dim": mels, "span": front.integer("lfr_m", 1),
            "stride": front.integer("lfr_n", 1),
        },
    }  # fmt: skip


def _grids(encoder: Section) -> list[list[int]]:
    """Of training's blocks, the largest first; the second of two is the one that FunASR streams with."""
    names = "pad_left", "stride", "chunk_size", "encoder_att_look_back_factor", "decoder_att_look_back_factor"
    columns = [encoder.get(name) for name in names]
    columns = [column if isinstance(column, list) else [column] for column in columns]
    count = max(map(len, columns))
    try:
        rows = [[_whole(column[min(i, len(column) - 1)]) for column in columns] for i in range(count)]
    except (TypeError, ValueError, IndexError):
        raise InputError(f"{encoder.source} needs whole numbers for {', '.join(names)} of its encoder") from None
    grids = [[left, size, room - left - size, back, other] for left, size, room, back, other in rows]
    return sorted(grids, key=lambda grid: grid[1] + grid[2], reverse=True)


def _whole(value: Any) -> int:
    if isinstance(value, float) and not value.is_integer():  # also NaN and Inf
        raise ValueError
    return int(value)


def _sizes(part: Section, kernel: int = 11) -> dict[str, Any]:
    shift = part.number("sanm_shfit", 0)
    if shift % 1:
        raise part.refusal("sanm_shfit", shift, "it must be a whole number")
    return {
        "heads": part.integer("attention_heads", 4),
        "inner": part.integer("linear_units", 2048),
        "kernel": part.integer("kernel_size", kernel),
        "shift": int(shift),
        "dropout": part.number("dropout_rate", 0.1),
    }
