"""NeMo's model configurations, translated to speechkit's own."""

import math
import re
from collections.abc import Mapping
from typing import Any

from speechkit.importers.section import Section

__all__ = ["Section", "length_rule_of", "translate"]

NEW_LENGTH_RULE = (2, 5)  # the NeMo version that counts L // hop frames; before, it counted one more
MAX_LAYERS = 1000


def translate(config: Section, vocab_size: int, length_rule: str | None) -> dict[str, Any]:
    """The ``model`` section of a speechkit configuration for a NeMo recogniser with so many pieces."""
    encoder = _encoder(config.at("encoder"))
    front = _front(config, length_rule)
    features = config.at("encoder").integer("feat_in", front["n_mels"])
    if features != front["n_mels"]:
        raise config.at("encoder").refusal("feat_in", features, f"the front end makes {front['n_mels']} features")
    model: dict[str, Any] = {
        "_target_": "speechkit.asr.model.Recognizer",
        "front": front,
        "encoder": {**encoder, "n_mels": front["n_mels"]},
    }
    decoder = config.at("decoder")
    kind = str(decoder.get("_target_", decoder.get("cls", ""))).rpartition(".")[2]
    if kind not in ("RNNTDecoder", "ConvASRDecoder"):
        raise decoder.refusal("_target_", kind, "speechkit honours RNNTDecoder and ConvASRDecoder")
    if kind == "RNNTDecoder":
        model |= _transducer(config, encoder["dim"], vocab_size)
    if kind == "ConvASRDecoder" or config.at("aux_ctc"):
        head = {"encoder_dim": encoder["dim"], "vocab_size": vocab_size}
        model["ctc"] = {"_target_": "speechkit.asr.ctc.CtcHead", **head}
    return model


def length_rule_of(version: Any) -> str:
    """How the NeMo that wrote a file counts frames: ``floor`` since 2.5, ``floor+1`` before or where it is not said."""
    match = re.match(r"(\d{1,9})\.(\d{1,9})", str(version))
    return "floor" if match and (int(match[1]), int(match[2])) >= NEW_LENGTH_RULE else "floor+1"


def _front(config: Section, length_rule: str | None) -> dict[str, Any]:
    section = config.at("preprocessor")
    rate = section.integer("sample_rate", config.get("sample_rate", 16000))
    window_ms = 1000 * section.number("window_size", section.number("n_window_size", 0.02 * rate) / rate)
    stride_ms = 1000 * section.number("window_stride", section.number("n_window_stride", 0.01 * rate) / rate)
    _check_front(section, rate)
    normalize = section.get("normalize")
    if normalize == "all_features" or isinstance(normalize, Mapping):
        raise section.refusal("normalize", normalize, "speechkit honours per_feature or none")
    fitting = 2 ** math.ceil(math.log2(max(2, round(rate * window_ms / 1000))))
    return {
        "_target_": "speechkit.features.LogMel",
        "sample_rate": rate,
        "n_mels": section.integer("features", 64),
        "n_fft": section.integer("n_fft", fitting),
        "window_ms": window_ms,
        "stride_ms": stride_ms,
        "preemphasis": section.number("preemph", 0.0 if "preemph" in section else 0.97),  # null: none
        "normalize": normalize if normalize == "per_feature" else None,
        "length_rule": length_rule or length_rule_of(config.get("nemo_version")),
        "dither": section.number("dither", 1e-5),
    }


def _check_front(section: Section, rate: int) -> None:
    """Refuses front ends with other arithmetic than `LogMel`."""
    kind = str(section.get("_target_", section.get("cls", "AudioToMelSpectrogramPreprocessor"))).rpartition(".")[2]
    if kind != "AudioToMelSpectrogramPreprocessor":
        raise section.refusal("_target_", kind, "speechkit honours AudioToMelSpectrogramPreprocessor")
    section.only("window", "hann")
    section.only("lowfreq", 0)
    section.only("highfreq", rate / 2)
    section.only("log", True)
    section.only("log_zero_guard_type", "add")
    section.only("log_zero_guard_value", 2**-24)
    section.only("mel_norm", "slaney")
    section.only("mag_power", 2.0)
    section.only("exact_pad", False)
    section.only("frame_splicing", 1)


def _encoder(section: Section) -> dict[str, Any]:
    _check_encoder(section)
    dim, kernel = section.integer("d_model"), section.integer("conv_kernel_size", 31)
    causal = section.flag("causal_downsampling", False)
    _check_convolution(section, kernel, causal)
    dropout = section.number("dropout", 0.1)
    style = section.only("att_context_style", "regular", "chunked_limited")
    return {
        "_target_": "speechkit.asr.conformer.ConformerEncoder",
        "dim": dim,
        "layers": section.integer("n_layers", largest=MAX_LAYERS),
        "heads": section.integer("n_heads", 4),
        "conv_kernel": kernel,
        "ff_expansion": section.integer("ff_expansion_factor", 4),
        "subsampling_channels": _channels(section, dim),
        "contexts": _contexts(section),
        "context_weights": _context_weights(section),
        "style": style,
        "bias": section.flag("use_bias", True),
        "xscale": section.flag("xscaling", True),
        "causal": causal,
        "conv_norm": section.only("conv_norm_type", "batch_norm", "layer_norm"),
        "dropout": dropout,
        "attention_dropout": section.number("dropout_att", 0.0),
    }


def _check_encoder(section: Section) -> None:
    """Refuses encoders with other arithmetic than `ConformerEncoder`."""
    kind = str(section.get("_target_", section.get("cls", ""))).rpartition(".")[2]
    if kind != "ConformerEncoder":
        raise section.refusal("_target_", kind, "speechkit honours ConformerEncoder")
    section.only("subsampling", "dw_striding")
    section.only("subsampling_factor", 8)
    section.only("self_attention_model", "rel_pos")
    section.only("untie_biases", True)
    section.only("reduction", None)
    if section.get("conv_context_style") == "dcc":
        raise section.refusal("conv_context_style", "dcc", "speechkit has causal and centred convolutions")
    width = section.get("feat_out", -1)
    if width not in (-1, 0, section.get("d_model")):
        raise section.refusal("feat_out", width, "speechkit has no projection after the encoder")


def _check_convolution(section: Section, kernel: int, causal: bool) -> None:
    context = section.get("conv_context_size")
    centred = [(kernel - 1) // 2] * 2
    expected = ("causal", [kernel - 1, 0]) if causal else (None, centred)
    if context not in expected:
        wanted = "causal" if causal else f"centred ({centred})"
        reason = f"with causal_downsampling {str(causal).lower()} the convolutions must be {wanted}"
        raise section.refusal("conv_context_size", context, reason)


def _channels(section: Section, dim: int) -> int:
    width = section.get("subsampling_conv_channels", -1)
    return dim if width == -1 else section.integer("subsampling_conv_channels")


def _contexts(section: Section) -> list[list[int]]:
    """``att_context_size``: nothing, one pair, or a list of pairs."""
    value = section.get("att_context_size") or [-1, -1]
    pairs = value if isinstance(value, list) and all(isinstance(pair, list) for pair in value) else [value]
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(side, int) for side in pair)):
            raise section.refusal("att_context_size", value, "it must be [left, right] or a list of such pairs")
    return [list(pair) for pair in pairs]


def _context_weights(section: Section) -> list[float] | None:
    value = section.get("att_context_probs")
    if value is not None and not (isinstance(value, list) and all(isinstance(p, int | float) for p in value)):
        raise section.refusal("att_context_probs", value, "it must be a list of numbers")
    return value


def _transducer(config: Section, encoder_dim: int, vocab_size: int) -> dict[str, Any]:
    decoder, joint = config.at("decoder"), config.at("joint")
    decoder.only("normalization_mode", None)
    decoder.only("blank_as_pad", True)
    if joint.get("num_extra_outputs", 0):
        reason = "speechkit's transducer predicts no durations (TDT)"
        raise joint.refusal("num_extra_outputs", joint.get("num_extra_outputs"), reason)
    network, predictor = joint.at("jointnet"), decoder.at("prednet")
    network.only("activation", "relu")
    dim = predictor.integer("pred_hidden")
    predictor.only("rnn_hidden_size", -1, dim)
    return {
        "predictor": {
            "_target_": "speechkit.asr.predictor.Predictor",
            "vocab_size": vocab_size,
            "dim": dim,
            "layers": predictor.integer("pred_rnn_layers", 1, MAX_LAYERS),
            "dropout": predictor.number("dropout", 0.0),
        },
        "joiner": {
            "_target_": "speechkit.asr.joiner.Joiner",
            "encoder_dim": encoder_dim,
            "predictor_dim": dim,
            "dim": network.integer("joint_hidden"),
            "vocab_size": vocab_size,
            "dropout": network.number("dropout", 0.0),
        },
    }
