"""FunASR's Paraformer folders: every published tensor has its place, and what is missing or strange is named."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import speechkit
from speechkit.asr.paraformer import Paraformer
from speechkit.asr.seaco import SeacoParaformer
from speechkit.builder import shapes
from speechkit.errors import InputError
from speechkit.importers import funasr
from tests.paths import GOLDENS, needs_goldens

KEYS = GOLDENS.parent / "specs" / "keys"
STREAMS = {
    "model": "ParaformerStreaming", "encoder": "SANMEncoderChunkOpt", "decoder__sanm_shfit": 2,
    "encoder__chunk_size": [12, 15], "encoder__stride": [8, 10], "encoder__pad_left": [0, 0],
    "encoder__encoder_att_look_back_factor": [4, 4], "encoder__decoder_att_look_back_factor": [1, 1],
}  # fmt: skip
TOKENS = ["<blank>", "<s>", "</s>", "一", "丁", "he@@", "llo", "<unk>"]


def config(**changes: Any) -> dict[str, Any]:
    """Of a tiny model; ``part__key`` changes a key of a part, None takes it away."""
    sizes = {"attention_heads": 2, "linear_units": 24, "kernel_size": 5, "dropout_rate": 0.1}
    found: dict[str, Any] = {
        "model": "Paraformer",
        "encoder": "SANMEncoder",
        "encoder_conf": {"output_size": 16, "num_blocks": 3, "selfattention_layer_type": "sanm", **sizes},
        "decoder": "ParaformerSANMDecoder",
        "decoder_conf": {"att_layer_num": 2, "num_blocks": 2, "sanm_shfit": 0, **sizes},
        "predictor": "CifPredictorV2",
        "predictor_conf": {"idim": 16, "threshold": 1.0, "l_order": 1, "r_order": 1, "tail_threshold": 0.45},
        "frontend": "WavFrontend",
        "frontend_conf": {"fs": 16000, "window": "hamming", "n_mels": 8, "frame_length": 25, "frame_shift": 10,
                          "lfr_m": 3, "lfr_n": 2},
    }  # fmt: skip
    return changed(found, changes)


def changed(found: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The settings themselves, changed."""
    for name, value in changes.items():
        part, _, key = name.partition("__")
        if key:
            found[f"{part}_conf"][key] = value
        elif value is None:
            found.pop(part)
        else:
            found[part] = value
    return found


def seaco(**changes: Any) -> dict[str, Any]:
    """Of a tiny SeACo-Paraformer; changes as of `config`."""
    second = {"smooth_factor2": 0.25, "noise_threshold2": 0.01, "upsample_times": 3, "use_cif1_cnn": False,
              "upsample_type": "cnn_blstm"}  # fmt: skip
    found = config(model="SeacoParaformer", predictor="CifPredictorV3")
    found["predictor_conf"] |= second
    found |= {
        "model_conf": {"inner_dim": 16, "bias_encoder_type": "lstm", "bias_encoder_bid": False, "NO_BIAS": 7},
        "seaco_decoder": "ParaformerSANMDecoder",
        "seaco_decoder_conf": {"attention_heads": 2, "linear_units": 20, "num_blocks": 4, "kernel_size": 7,
                               "sanm_shfit": 0, "use_output_layer": False, "wo_input_layer": True},
    }  # fmt: skip
    return changed(found, changes)


def published(name: str) -> str:
    """FunASR's name of a tensor of ours."""
    if name.startswith("bias.decoder."):
        return f"seaco_{published(name.removeprefix('bias.'))}"
    layer = re.match(r"encoder\.layers\.(\d+)\.", name)
    if layer:
        at = int(layer[1])
        name = f"encoder.encoders{'0.0' if at == 0 else f'.{at - 1}'}.{name[layer.end() :]}"
    pairs = [
        (r"^(encoder\..*)attention\.qkv\.", r"\1self_attn.linear_q_k_v."),
        (r"^(encoder\..*)attention\.out\.", r"\1self_attn.linear_out."),
        (r"^(encoder\..*)attention\.memory\.conv\.", r"\1self_attn.fsmn_block."),
        (r"^(encoder\..*)widen\.", r"\1feed_forward.w_1."),
        (r"^(encoder\..*)narrow\.", r"\1feed_forward.w_2."),
        (r"^decoder\.last_norm\.", "decoder.decoders3.0.norm1."),
        (r"^decoder\.last\.", "decoder.decoders3.0.feed_forward."),
        (r"^decoder\.layers\.", "decoder.decoders."),
        (r"^(decoder\..*)memory\.conv\.", r"\1self_attn.fsmn_block."),
        (r"^(decoder\..*\d\.)query\.", r"\1src_attn.linear_q."),
        (r"^(decoder\..*\d\.)key_value\.", r"\1src_attn.linear_k_v."),
        (r"^(decoder\.decoders\.\d+\.)out\.", r"\1src_attn.linear_out."),
        (r"^(decoder\..*)widen\.", r"\1w_1."), (r"^(decoder\..*)narrow\.", r"\1w_2."),
        (r"^decoder\.embed\.", "decoder.embed.0."), (r"^decoder\.out\.", "decoder.output_layer."),
        (r"^(encoder|decoder)\.norm\.", r"\1.after_norm."),
        (r"^predictor\.conv\.", "predictor.cif_conv1d."), (r"^predictor\.out\.", "predictor.cif_output."),
        (r"^predictor\.frames\.", "predictor.upsample_cnn."), (r"^predictor\.frame_out\.", "predictor.cif_output2."),
        (r"^bias\.encoder\.", "bias_encoder."), (r"^bias\.out\.", "hotword_output_layer."),
    ]  # fmt: skip
    for pattern, theirs in pairs:
        name = re.sub(pattern, theirs, name)
    return name


def tensors(settings: dict[str, Any]) -> dict[str, Tensor]:
    """Random ones by FunASR's names."""
    torch.manual_seed(0)
    own = shapes(funasr.model_config({**settings, "vocab_size": len(TOKENS)}, "here"))
    return {published(name): 0.3 * torch.randn(shape) for name, shape in own.items() if not name.startswith("front.")}


def folder(path: Path, settings: dict[str, Any], wrap: Callable[[dict[str, Tensor]], Any] = lambda x: x) -> Path:
    """A model folder as FunASR publishes it."""
    path.mkdir(exist_ok=True)
    (path / "config.yaml").write_text(yaml.safe_dump(settings))
    (path / "tokens.json").write_text(json.dumps(TOKENS, ensure_ascii=False))
    front = settings["frontend_conf"]
    numbers = " 1.5" * (front["n_mels"] * front["lfr_m"])
    part = "<{}> 24 24\n<LearnRateCoef> 0 [{} ]\n"
    shift, scale = part.format("AddShift", numbers.replace(" ", " -")), part.format("Rescale", numbers)
    (path / "am.mvn").write_text(f"<Nnet>\n{shift}{scale}</Nnet>\n")
    torch.save(wrap(tensors(settings)), path / "model.pt")
    return path


@needs_goldens
@pytest.mark.parametrize("name", ["paraformer", "paraformer_streaming", "seaco_paraformer"])
def test_every_published_tensor_has_its_place(name: str) -> None:
    """220 M parameters, 247 M with a bias decoder, of which none is missing and none left over."""
    lines = [line.split("\t") for line in (KEYS / f"paraformer_keys_{name}.txt").read_text().splitlines()]
    found = {line[0]: torch.Size(int(n) for n in re.findall(r"\d+", line[1])) for line in lines if len(line) > 1}
    sizes = {"attention_heads": 4, "linear_units": 2048, "kernel_size": 11}
    made, bias = config, {}
    if name.startswith("seaco"):  # four blocks are asked for, but layers with attention are six where none are named
        made, bias = (
            seaco,
            {
                "model__inner_dim": 512,
                "model__NO_BIAS": 8377,
                "seaco_decoder__attention_heads": 4,
                "seaco_decoder__linear_units": 1024,
                "seaco_decoder__kernel_size": 21,
            },
        )
    settings = made(
        frontend__n_mels=80, frontend__lfr_m=7, frontend__lfr_n=6,
        encoder__output_size=512, encoder__num_blocks=50, decoder__att_layer_num=16,
        **{f"{part}__{key}": value for part in ("encoder", "decoder") for key, value in sizes.items()},
        **bias,
    )  # fmt: skip
    own = shapes(funasr.model_config({**settings, "vocab_size": 8404}, name))
    empty = funasr.renamed({key: torch.empty(size, device="meta") for key, size in found.items()})
    assert {key: x.shape for key, x in empty.items()} == {k: s for k, s in own.items() if not k.startswith("front.")}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: {"state_dict": x},
        lambda x: {"model": {f"module.{name}": value for name, value in x.items()}, "epoch": 3},
    ],
    ids=["plain", "state_dict", "wrapped by DDP"],
)
def test_a_folder_loads_and_hears(tmp_path: Path, wrap: Callable[[dict[str, Tensor]], Any]) -> None:
    loaded = speechkit.load(folder(tmp_path, config(), wrap))
    assert isinstance(loaded.model, Paraformer)
    assert loaded.tokenizer.pieces == TOKENS
    assert loaded.latencies_ms == []
    noise = 0.1 * torch.randn(16_000, generator=torch.Generator().manual_seed(0)).numpy()
    said = loaded.transcribe(noise)
    assert said.hypotheses[0].tokens
    assert not set(said.hypotheses[0].tokens) & {0, 1, 2}
    front: Any = loaded.model.front
    torch.testing.assert_close(front.joined.shift, torch.full((24,), -1.5))
    torch.testing.assert_close(front.joined.scale, torch.full((24,), 1.5))


def test_a_model_for_streams_has_the_grids_of_its_training(tmp_path: Path) -> None:
    settings = config(**STREAMS)
    loaded = speechkit.load(folder(tmp_path, settings))
    assert [tuple(grid) for grid in loaded.model.contexts] == [(0, 10, 5, 4, 1), (0, 8, 4, 4, 1)]
    assert loaded.latencies_ms == [14 * 20, 11 * 20]
    noise = 0.1 * torch.randn(48_000, generator=torch.Generator().manual_seed(0)).numpy()
    stream = loaded.stream()
    for piece in range(0, len(noise), 7000):
        stream.push(noise[piece : piece + 7000])
    assert stream.finish().hypotheses[0].tokens == loaded.transcribe(noise).hypotheses[0].tokens
    reference = speechkit.load(tmp_path, compat="reference")
    assert reference.stream().push(noise).finish().text


def test_a_model_with_a_bias_decoder_hears_phrases(tmp_path: Path) -> None:
    loaded = speechkit.load(folder(tmp_path, seaco()))
    model: Any = loaded.model
    assert isinstance(model, SeacoParaformer)
    assert (model.bias.no_bias, model.start, model.predictor.upsample) == (7, 1, 3)
    assert len(model.bias.decoder.layers) == 6
    noise = 0.1 * torch.randn(16_000, generator=torch.Generator().manual_seed(0)).numpy()
    model.bias.out.weight.data.zero_()
    model.bias.out.bias.data.zero_()[3] = 1.0
    said = loaded.transcribe(noise).hypotheses[0].tokens
    assert set(said) != {3}
    assert set(loaded.transcribe(noise, hotwords=["一丁"], hotword_weight=0).hypotheses[0].tokens) == {3}
    with pytest.raises(InputError, match="1 of 1 phrases cannot be boosted"):
        loaded.transcribe(noise, hotwords=["三"])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"predictor": "CifPredictorV2"}, "predictor: 'CifPredictorV2'"),
        ({"predictor__upsample_type": "cnn"}, "predictor_conf.upsample_type: 'cnn'"),
        ({"predictor__use_cif1_cnn": None}, "predictor_conf.use_cif1_cnn: True"),
        ({"predictor__upsample_times": 0}, "predictor_conf.upsample_times: 0"),
        ({"seaco_decoder": "TransformerDecoder"}, "seaco_decoder: 'TransformerDecoder'"),
        ({"seaco_decoder__att_layer_num": 0}, "seaco_decoder_conf.att_layer_num: 0"),
        ({"model__inner_dim": 256}, "model_conf.inner_dim: 256"),
        ({"model__bias_encoder_type": "mean"}, "model_conf.bias_encoder_type: 'mean'"),
        ({"bias_encoder_bid": True}, "has bias_encoder_bid: True"),
        ({"model__NO_BIAS": None}, "model_conf.NO_BIAS: 8377"),
    ],
)
def test_what_speechkit_does_not_have_of_a_bias_decoder_is_named(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=re.escape(reason)):
        funasr.model_config({**seaco(**changes), "vocab_size": len(TOKENS)}, "here")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "BiCifParaformer"}, "model: 'BiCifParaformer'"),
        ({"encoder": "ConformerEncoder"}, "encoder: 'ConformerEncoder'"),
        ({"predictor__threshold": 0.5}, "predictor_conf.threshold: 0.5"),
        ({"frontend__window": "povey"}, "frontend_conf.window: 'povey'"),
        ({"frontend__snip_edges": False}, "frontend_conf.snip_edges: False"),
        ({"encoder__input_layer": "conv2d"}, "encoder_conf.input_layer: 'conv2d'"),
        ({"encoder__sanm_shfit": -3}, "no shift under 0"),
        ({"encoder__sanm_shfit": 1.5}, "encoder_conf.sanm_shfit: 1.5"),
        ({"encoder__attention_heads": -2}, "encoder_conf.attention_heads: -2"),
        ({**STREAMS, "encoder__chunk_size": [12.7, 15]}, "needs whole numbers for pad_left, stride, chunk_size"),
        (
            {**STREAMS, "encoder__chunk_size": [float("inf"), 15]},
            "needs whole numbers for pad_left, stride, chunk_size",
        ),
        ({"decoder__concat_after": True}, "decoder_conf.concat_after: True"),
        ({"predictor__tail_mask": False}, "predictor_conf.tail_mask: False"),
        ({"encoder__attention_heads": 3}, "cannot be split among 3 heads"),
        ({"encoder__num_blocks": 10**9}, "1 to 1000 layers"),
        ({"encoder__output_size": "big"}, "encoder_conf.output_size: 'big'"),
    ],
)
def test_what_speechkit_does_not_have_is_named(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    folder(tmp_path, config())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config(**changes)))
    with pytest.raises(InputError, match=re.escape(reason)):
        speechkit.load(tmp_path)


@pytest.mark.parametrize("name", ["config.yaml", "am.mvn", "tokens.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    (folder(tmp_path, config()) / name).unlink()
    with pytest.raises(InputError, match=f"{name} cannot be read"):
        speechkit.load(tmp_path)


def test_two_tensors_do_not_become_one() -> None:
    tensors = {name: torch.zeros(1) for name in ("encoder.after_norm.bias", "encoder.norm.bias")}
    with pytest.raises(InputError, match=r"two of its tensors are encoder\.norm\.bias"):
        funasr.renamed(tensors)


def test_loading_is_strict(tmp_path: Path) -> None:
    folder(
        tmp_path, config(), lambda x: {name: value for name, value in x.items() if name != "encoder.after_norm.bias"}
    )
    with pytest.raises(InputError, match=r"lack encoder\.norm\.bias"):
        speechkit.load(tmp_path)
    folder(tmp_path, config(), lambda x: {**x, "decoder.embed.0.weight": torch.zeros(3, 16)})
    with pytest.raises(InputError, match=r"decoder\.embed\.weight of shape"):
        speechkit.load(tmp_path)
    folder(tmp_path, config(), lambda x: {**x, "bias_encoder.weight": torch.zeros(3)})
    with pytest.raises(InputError, match=r"unknown bias\.encoder\.weight"):
        speechkit.load(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "<AddShift> 3 3\n<LearnRateCoef> 0 [ 1 nan 2 ]\n", "<AddShift>\n<LearnRateCoef> 0 [ x ]"]
)
def test_a_damaged_normalisation_is_one_sentence(tmp_path: Path, text: str) -> None:
    (folder(tmp_path, config()) / "am.mvn").write_text(text)
    with pytest.raises(InputError, match="is no am.mvn that can be read"):
        speechkit.load(tmp_path)
