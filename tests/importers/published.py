"""Small `.nemo` files as NeMo writes them: its names, shapes and configuration, random weights."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

SYMBOLS = [" ", *"abcdefgh", "'"]
DIM, CHANNELS, HEADS, MELS, PREDICTOR, JOINT = 16, 4, 2, 20, 12, 10


def configuration(kind: str = "hybrid", **changes: Any) -> dict[str, Any]:
    """A model's `model_config.yaml`; `changes` are dotted keys with ``__`` for the dot, None to delete."""
    config: dict[str, Any] = {
        "sample_rate": 16000,
        "labels": SYMBOLS,
        "preprocessor": {
            "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
            "sample_rate": 16000, "normalize": "NA", "window_size": 0.025, "window_stride": 0.01, "window": "hann",
            "features": MELS, "n_fft": 512, "frame_splicing": 1, "dither": 1e-5, "pad_to": 0,
        },
        "encoder": {
            "_target_": "nemo.collections.asr.modules.ConformerEncoder",
            "feat_in": MELS, "feat_out": -1, "n_layers": 2, "d_model": DIM, "use_bias": True,
            "subsampling": "dw_striding", "subsampling_factor": 8, "subsampling_conv_channels": CHANNELS,
            "causal_downsampling": True, "ff_expansion_factor": 4, "self_attention_model": "rel_pos",
            "n_heads": HEADS, "att_context_size": [[8, 3], [8, 0]], "att_context_style": "chunked_limited",
            "xscaling": True, "untie_biases": True, "conv_kernel_size": 5, "conv_norm_type": "layer_norm",
            "conv_context_size": "causal", "dropout": 0.1, "dropout_att": 0.1,
        },
        "target": "nemo.collections.asr.models.EncDecModel",
        "nemo_version": "2.5.0rc0",
    }  # fmt: skip
    ctc = {"_target_": "nemo.collections.asr.modules.ConvASRDecoder", "feat_in": DIM, "vocabulary": SYMBOLS}
    if kind == "ctc":
        config["decoder"] = ctc
    else:
        prednet = {"pred_hidden": PREDICTOR, "pred_rnn_layers": 1, "dropout": 0.2}
        config["decoder"] = {"_target_": "nemo.collections.asr.modules.RNNTDecoder", "prednet": prednet}
        jointnet = {"joint_hidden": JOINT, "activation": "relu", "dropout": 0.2}
        config["joint"] = {"jointnet": jointnet, "vocabulary": SYMBOLS}
    if kind == "hybrid":
        config["aux_ctc"] = {"ctc_loss_weight": 0.3, "decoder": ctc}
    for key, value in changes.items():
        *path, last = key.split("__")
        section = config
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
        if value is None:
            del section[last]
    return config


def full_context(**changes: Any) -> dict[str, Any]:
    """An offline CTC model: centred, batch norm, unlimited attention, normalised features."""
    return configuration(
        "ctc",
        **{
            "encoder__causal_downsampling": False,
            "encoder__conv_context_size": None,
            "encoder__conv_norm_type": "batch_norm",
            "encoder__att_context_size": [-1, -1],
            "encoder__att_context_style": "regular",
            "preprocessor__normalize": "per_feature",
            "nemo_version": "1.21.0",
            **changes,
        },
    )


def weights(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Random tensors by NeMo's names."""
    shapes = encoder_shapes(config["encoder"])
    size = len(SYMBOLS) + 1
    if "joint" in config:
        index = 2 if config["joint"]["jointnet"]["dropout"] > 0 else 1
        shapes |= {"decoder.prediction.embed.weight": (size, PREDICTOR)}
        for layer in range(config["decoder"]["prednet"]["pred_rnn_layers"]):
            for name in ("weight_ih", "weight_hh"):
                shapes[f"decoder.prediction.dec_rnn.lstm.{name}_l{layer}"] = (4 * PREDICTOR, PREDICTOR)
            for name in ("bias_ih", "bias_hh"):
                shapes[f"decoder.prediction.dec_rnn.lstm.{name}_l{layer}"] = (4 * PREDICTOR,)
        shapes |= {
            "joint.pred.weight": (JOINT, PREDICTOR), "joint.pred.bias": (JOINT,),
            "joint.enc.weight": (JOINT, DIM), "joint.enc.bias": (JOINT,),
            f"joint.joint_net.{index}.weight": (size, JOINT), f"joint.joint_net.{index}.bias": (size,),
        }  # fmt: skip
    head = "ctc_decoder" if "aux_ctc" in config else "decoder"
    if head == "ctc_decoder" or "joint" not in config:
        shapes |= {f"{head}.decoder_layers.0.weight": (size, DIM, 1), f"{head}.decoder_layers.0.bias": (size,)}
    generator = torch.Generator().manual_seed(seed)
    return {name: _random(name, shape, generator) for name, shape in shapes.items()}


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.tensor(7)
    tensor = 0.3 * torch.randn(shape, generator=generator)
    return tensor.abs() + 0.5 if name.endswith("running_var") else tensor


def encoder_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The encoder's names and shapes."""
    bands = config["feat_in"]
    for _ in range(3):
        bands = bands // 2 + 1 if config["causal_downsampling"] else (bands - 1) // 2 + 1
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.pre_encode.out.weight": (DIM, CHANNELS * bands),
        "encoder.pre_encode.out.bias": (DIM,),
    }
    for i, shape in {0: (1, 3, 3), 2: (1, 3, 3), 3: (CHANNELS, 1, 1), 5: (1, 3, 3), 6: (CHANNELS, 1, 1)}.items():
        shapes[f"encoder.pre_encode.conv.{i}.weight"] = (CHANNELS, *shape)
        shapes[f"encoder.pre_encode.conv.{i}.bias"] = (CHANNELS,)
    for i in range(config["n_layers"]):
        shapes |= {f"encoder.layers.{i}.{name}": shape for name, shape in layer_shapes(config).items()}
    return shapes


def layer_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """One layer's names and shapes."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name in ("norm_feed_forward1", "norm_feed_forward2", "norm_self_att", "norm_conv", "norm_out"):
        shapes |= {f"{name}.weight": (DIM,), f"{name}.bias": (DIM,)}
    biased: dict[str, tuple[int, ...]] = {
        "conv.pointwise_conv1": (2 * DIM, DIM, 1),
        "conv.depthwise_conv": (DIM, 1, config["conv_kernel_size"]),
        "conv.pointwise_conv2": (DIM, DIM, 1),
    }
    for name in ("feed_forward1", "feed_forward2"):
        biased |= {f"{name}.linear1": (4 * DIM, DIM), f"{name}.linear2": (DIM, 4 * DIM)}
    biased |= {f"self_attn.linear_{which}": (DIM, DIM) for which in ("q", "k", "v", "out")}
    for name, shape in biased.items():
        shapes[f"{name}.weight"] = shape
        if config["use_bias"]:
            shapes[f"{name}.bias"] = shape[:1]
    shapes["self_attn.linear_pos.weight"] = (DIM, DIM)
    shapes |= {f"self_attn.pos_bias_{which}": (HEADS, DIM // HEADS) for which in "uv"}
    shapes |= {f"conv.batch_norm.{leaf}": (DIM,) for leaf in ("weight", "bias")}
    if config["conv_norm_type"] == "batch_norm":
        shapes |= {f"conv.batch_norm.running_{leaf}": (DIM,) for leaf in ("mean", "var")}
        shapes["conv.batch_norm.num_batches_tracked"] = ()
    return shapes


def pack(
    path: Path,
    config: Any,
    tensors: Any,
    mode: str = "w:",
    prefix: str = "./",
    files: dict[str, bytes] | None = None,
    change: Callable[[tarfile.TarFile], None] | None = None,
) -> Path:
    """Writes a `.nemo` file; `change` adds whatever else to the archive."""
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    members = {"model_config.yaml": yaml.safe_dump(config).encode(), "model_weights.ckpt": buffer.getvalue()}
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in {**members, **(files or {})}.items():
            add(archive, prefix + name, data)
        if change is not None:
            change(archive)
    return path


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    """A regular member."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))
