"""What FunASR's folders of SeACo-Paraformers have beyond those of Paraformers."""

from collections.abc import Mapping
from typing import Any

from speechkit.importers.section import Section

NAMES = (
    (r"^predictor\.upsample_cnn\.", "predictor.frames."),
    (r"^predictor\.cif_output2\.", "predictor.frame_out."),
    (r"^bias_encoder\.", "bias.encoder."),
    (r"^seaco_decoder\.", "bias.decoder."),
    (r"^hotword_output_layer\.", "bias.out."),
)


def predictor(conf: Section) -> dict[str, Any]:
    """What of a `CifPredictorV3` is not of a `CifPredictor`; what is missing is what FunASR would take.

    Raises:
        InputError: it has another kind of second head.
    """
    for key, default, honoured in (("upsample_type", "cnn", "cnn_blstm"), ("use_cif1_cnn", True, False)):
        value = conf.get(key, default)
        if value != honoured:
            raise conf.refusal(key, value, f"speechkit honours {honoured}")
    return {
        "_target_": "speechkit.asr.seaco.CifPredictorV3",
        "upsample": conf.integer("upsample_times", 5),
        "smooth": conf.number("smooth_factor2", 1.0),
        "noise": conf.number("noise_threshold2", 0.0),
    }


def network(root: Section, dim: int, vocab_size: int, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """What a `SeacoParaformer` has that a `Paraformer` has not, `sizes` being those of the bias decoder's layers.

    Raises:
        InputError: it has another bias encoder or decoder.
    """
    root.only("seaco_decoder", "ParaformerSANMDecoder")
    for key, honoured in (("inner_dim", dim), ("bias_encoder_type", "lstm"), ("bias_encoder_bid", False)):
        _holder(root, key).only(key, honoured)
    return {
        "_target_": "speechkit.asr.seaco.SeacoParaformer",
        "bias": {
            "_target_": "speechkit.asr.seaco_bias.BiasDecoder",
            "vocab_size": vocab_size, "dim": dim, "layers": root.at("seaco_decoder_conf").integer("att_layer_num", 6),
            "no_bias": _holder(root, "NO_BIAS").integer("NO_BIAS", 8377, vocab_size - 1), **sizes,
        },
        "start": min(1, vocab_size - 1),
    }  # fmt: skip


def _holder(root: Section, key: str) -> Section:
    """Where a setting of the model stands: beside its parts, or in `model_conf`."""
    return root if key in root else root.at("model_conf")
