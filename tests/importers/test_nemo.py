"""NeMo files: every kind that is published loads, and nothing else does."""

import io
import math
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import speechkit
from speechkit import hub
from speechkit.asr.model import Recognizer
from speechkit.errors import InputError
from speechkit.importers import nemo
from speechkit.release import build_model
from speechkit.text import CharTokenizer, SentencePieceTokenizer, train_sentencepiece
from tests.importers.published import DIM, HEADS, SYMBOLS, add, configuration, full_context, pack, weights

Published = tuple[dict[str, Any], dict[str, Tensor]]


@pytest.fixture
def hybrid() -> Published:
    config = configuration()
    return config, weights(config)


def model_of(path: Path, **options: Any) -> Recognizer:
    model = build_model(nemo.read(path, **options))
    assert isinstance(model, Recognizer)
    return model


def load(tmp_path: Path, config: dict[str, Any], **options: Any) -> Recognizer:
    return model_of(pack(tmp_path / "model.nemo", config, weights(config)), **options)


# What loads


@pytest.mark.parametrize(("kind", "heads"), [("ctc", ["ctc"]), ("rnnt", ["rnnt"]), ("hybrid", ["rnnt", "ctc"])])
def test_every_kind_of_recogniser_loads(tmp_path: Path, kind: str, heads: list[str]) -> None:
    model = load(tmp_path, configuration(kind))
    assert model.decoders == heads
    assert model.contexts == [(8, 3), (8, 0)]
    assert model.blank == len(SYMBOLS)


def test_every_tensor_finds_its_place(tmp_path: Path) -> None:
    """No biases, no scale, two LSTM layers, a joint without dropout, another kernel: all that can differ, at once."""
    config = configuration(
        encoder__use_bias=False, encoder__xscaling=False, encoder__conv_kernel_size=7, encoder__n_layers=3,
        decoder__prednet__pred_rnn_layers=2, joint__jointnet__dropout=0.0,
    )  # fmt: skip
    published = weights(config)
    model = model_of(pack(tmp_path / "model.nemo", config, published))
    assert model.encoder.scale == 1.0
    assert "joint.joint_net.1.weight" in published
    ours = model.state_dict()
    assert sum(tensor.numel() for tensor in ours.values()) == sum(tensor.numel() for tensor in published.values())
    layer = "encoder.layers.2"
    qkv = [published[f"{layer}.self_attn.linear_{which}.weight"] for which in "qkv"]
    for name, expected in {
        f"{layer}.attention.qkv.weight": torch.cat(qkv),
        f"{layer}.attention.content_bias": published[f"{layer}.self_attn.pos_bias_u"],
        f"{layer}.attention.position_bias": published[f"{layer}.self_attn.pos_bias_v"],
        f"{layer}.convolution.expand.weight": published[f"{layer}.conv.pointwise_conv1.weight"][..., 0],
        f"{layer}.convolution.depthwise.weight": published[f"{layer}.conv.depthwise_conv.weight"],
        f"{layer}.feed_forward2.3.weight": published[f"{layer}.feed_forward2.linear2.weight"],
        "predictor.lstm.weight_hh_l1": published["decoder.prediction.dec_rnn.lstm.weight_hh_l1"],
        "joiner.out.weight": published["joint.joint_net.1.weight"],
        "ctc.out.weight": published["ctc_decoder.decoder_layers.0.weight"][..., 0],
    }.items():
        torch.testing.assert_close(ours[name], expected, rtol=0, atol=0)


def plain_encoder(w: dict[str, Tensor], mel: Tensor, layers: int) -> Tensor:
    """A full-context FastConformer for one utterance (frames, n_mels), written down from NeMo's tensors alone."""
    x = mel[None, None]
    for strided, pointwise in ((0, None), (2, 3), (5, 6)):
        name = f"encoder.pre_encode.conv.{strided}"
        x = F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride=2, padding=1, groups=x.shape[1])
        if pointwise is not None:
            name = f"encoder.pre_encode.conv.{pointwise}"
            x = F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"])
        x = x.relu()
    x = x[0].transpose(0, 1).flatten(1)
    x = F.linear(x, w["encoder.pre_encode.out.weight"], w["encoder.pre_encode.out.bias"]) * math.sqrt(DIM)
    for i in range(layers):
        x = plain_layer({n.removeprefix(f"encoder.layers.{i}."): t for n, t in w.items()}, x)
    return x


def plain_layer(w: dict[str, Tensor], x: Tensor) -> Tensor:
    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, w[f"{name}.weight"].reshape(-1, x.shape[-1]), w.get(f"{name}.bias"))

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (DIM,), w[f"{name}.weight"], w[f"{name}.bias"])

    def feed_forward(n: int, x: Tensor) -> Tensor:
        y = F.silu(linear(f"feed_forward{n}.linear1", norm(f"norm_feed_forward{n}", x)))
        return x + 0.5 * linear(f"feed_forward{n}.linear2", y)

    x = feed_forward(1, x)
    y, size = norm("norm_self_att", x), DIM // HEADS
    q, k, v = (linear(f"self_attn.linear_{which}", y).view(-1, HEADS, size) for which in "qkv")
    time = torch.arange(len(x))
    distance = (time[:, None] - time).float()[..., None]
    angle = distance * torch.exp(torch.arange(0, DIM, 2) * (-math.log(10000.0) / DIM))
    sinusoids = torch.stack([angle.sin(), angle.cos()], -1).flatten(2)
    p = linear("self_attn.linear_pos", sinusoids).view(len(x), len(x), HEADS, size)
    scores = torch.einsum("ihd,jhd->hij", q + w["self_attn.pos_bias_u"], k)
    scores = scores + torch.einsum("ihd,ijhd->hij", q + w["self_attn.pos_bias_v"], p)
    attended = torch.einsum("hij,jhd->ihd", (scores / math.sqrt(size)).softmax(-1), v).flatten(1)
    x = x + linear("self_attn.linear_out", attended)
    y = F.glu(linear("conv.pointwise_conv1", norm("norm_conv", x)), dim=-1).T[None]
    kernel = w["conv.depthwise_conv.weight"]
    y = F.conv1d(y, kernel, w.get("conv.depthwise_conv.bias"), padding=kernel.shape[-1] // 2, groups=DIM)
    name = "conv.batch_norm"
    mean, variance = w[f"{name}.running_mean"], w[f"{name}.running_var"]
    y = F.batch_norm(y, mean, variance, w[f"{name}.weight"], w[f"{name}.bias"])[0].T
    x = x + linear("conv.pointwise_conv2", F.silu(y))
    return norm("norm_out", feed_forward(2, x))


@pytest.mark.parametrize(("frames", "bias"), [(40, True), (57, True), (57, False)])
def test_full_context_encoder_is_its_formula(tmp_path: Path, frames: int, bias: bool) -> None:
    config = full_context(encoder__use_bias=bias)
    published = weights(config)
    model = model_of(pack(tmp_path / "model.nemo", config, published))
    mel = torch.randn(1, frames, config["encoder"]["feat_in"])
    with torch.no_grad():
        ours, lengths = model.encoder(mel, torch.tensor([frames]))
        theirs = plain_encoder(published, mel[0], config["encoder"]["n_layers"])
    assert lengths.tolist() == [len(theirs)]
    torch.testing.assert_close(ours[0], theirs, rtol=1e-4, atol=1e-4)


def test_full_context_model_transcribes_and_says_that_it_cannot_stream(tmp_path: Path) -> None:
    config = full_context()
    transcriber = speechkit.load(pack(tmp_path / "model.nemo", config, weights(config)))
    assert isinstance(transcriber.transcribe(0.1 * torch.randn(8000)).text, str)
    with pytest.raises(InputError, match="full context"):
        transcriber.stream()


@pytest.mark.parametrize("bands", [64, 80, 128])
def test_any_number_of_mel_bands_loads(tmp_path: Path, bands: int) -> None:
    model = load(tmp_path, configuration("ctc", preprocessor__features=bands, encoder__feat_in=bands))
    assert model.encode(torch.randn(1, 3200), torch.tensor([3200]))[0].shape == (1, 4, DIM)


@pytest.mark.parametrize(
    ("published", "contexts"),
    [([16, 1], [(16, 1)]), ([[16, 1], [16, 0]], [(16, 1), (16, 0)]), ([-1, 3], [(-1, 3)]), (None, [(-1, -1)])],
)
def test_contexts_come_as_one_pair_or_many(tmp_path: Path, published: Any, contexts: list[tuple[int, int]]) -> None:
    assert load(tmp_path, configuration("ctc", encoder__att_context_size=published)).contexts == contexts


def test_contexts_are_drawn_as_they_were(tmp_path: Path) -> None:
    assert load(tmp_path, configuration("ctc", encoder__att_context_probs=[0.75, 0.25])).encoder.context_weights == [
        0.75,
        0.25,
    ]


@pytest.mark.parametrize(
    ("version", "extra"), [("1.23.0", 1), ("2.4.1", 1), (None, 1), ("2.5.0rc0", 0), ("2.10.0", 0), ("3.0.0", 0)]
)
def test_frames_are_counted_as_the_writing_version_did(tmp_path: Path, version: str | None, extra: int) -> None:
    config = configuration("ctc", nemo_version=version)
    assert load(tmp_path, config).front.extra_frames == extra
    assert load(tmp_path, config, length_rule="floor").front.extra_frames == 0
    assert load(tmp_path, config, length_rule="floor+1").front.extra_frames == 1


def test_unknown_settings_are_ignored(tmp_path: Path) -> None:
    config = configuration(
        preprocessor__stft_conv=False, preprocessor__pad_to=16, joint__experimental_fuse_loss_wer=True,
        encoder__new_thing=[1], optim={"name": "adamw", "lr": "${model.nowhere.lr}"},
    )  # fmt: skip
    assert load(tmp_path, config).decoders == ["rnnt", "ctc"]


def test_interpolations_are_followed(tmp_path: Path) -> None:
    config = configuration(
        "rnnt", model_defaults={"joint_hidden": 10}, encoder__feat_in="${preprocessor.features}",
        joint__jointnet__joint_hidden="${model.model_defaults.joint_hidden}",
    )  # fmt: skip
    assert load_as(tmp_path, config, configuration("rnnt")).decoders == ["rnnt"]


def load_as(tmp_path: Path, config: dict[str, Any], like: dict[str, Any]) -> Recognizer:
    return model_of(pack(tmp_path / "model.nemo", config, weights(like)))


@pytest.mark.parametrize("mode", ["w:", "w:gz"])
@pytest.mark.parametrize("prefix", ["./", ""])
def test_archives_are_plain_or_gzip(tmp_path: Path, hybrid: Published, mode: str, prefix: str) -> None:
    assert nemo.read(pack(tmp_path / "model.nemo", *hybrid, mode=mode, prefix=prefix)).tensors


def test_characters_come_from_the_vocabulary(tmp_path: Path, hybrid: Published) -> None:
    tokenizer = nemo.read(pack(tmp_path / "model.nemo", *hybrid)).tokenizer
    assert isinstance(tokenizer, CharTokenizer)
    assert tokenizer.decode(tokenizer.encode("a bad egg")) == "a bad egg"


def test_pieces_come_from_the_archive(tmp_path: Path, hybrid: Published) -> None:
    config, tensors = hybrid
    train_sentencepiece(["bad egg", "a cab fed", "feed a hag"], tmp_path, len(SYMBOLS), "bpe")
    pieces = (tmp_path / "tokenizer.model").read_bytes()
    name = "0123456789abcdef0123456789abcdef_tokenizer.model"
    config["tokenizer"] = {"type": "bpe", "model_path": f"nemo:{name}"}
    tokenizer = nemo.read(pack(tmp_path / "model.nemo", config, tensors, files={name: pieces})).tokenizer
    assert isinstance(tokenizer, SentencePieceTokenizer)
    assert tokenizer.vocab_size == len(SYMBOLS)
    with pytest.raises(InputError, match=r"no 0123456789abcdef0123456789abcdef_tokenizer\.model"):
        nemo.read(pack(tmp_path / "model.nemo", config, tensors))
    with pytest.raises(InputError, match="not a SentencePiece model"):
        nemo.read(pack(tmp_path / "model.nemo", config, tensors, files={name: b"nothing"}))


def test_a_published_model_can_be_saved_as_a_release(tmp_path: Path, hybrid: Published) -> None:
    published = nemo.read(pack(tmp_path / "model.nemo", *hybrid))
    folder = hub.save(tmp_path / "release", published.config, build_model(published), published.tokenizer, "card")
    ours, theirs = speechkit.load(folder), speechkit.load(tmp_path / "model.nemo")
    wave = 0.1 * torch.randn(8000)
    assert ours.transcribe(wave).hypotheses == theirs.transcribe(wave).hypotheses


# What is refused, with a sentence


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("encoder.subsampling", "vggnet"),
        ("encoder.subsampling_factor", 4),
        ("encoder.self_attention_model", "rel_pos_local_attn"),
        ("encoder.att_context_style", "chunked_limited_with_rc"),
        ("encoder.att_context_size", [70]),
        ("encoder.conv_context_size", [1, 3]),
        ("encoder.conv_context_style", "dcc"),
        ("encoder.conv_norm_type", "instance_norm"),
        ("encoder.feat_out", 99),
        ("encoder.feat_in", 80),
        ("encoder.d_model", "many"),
        ("encoder.n_layers", 0),
        ("encoder._target_", "SqueezeformerEncoder"),
        ("preprocessor._target_", "AudioToMFCCPreprocessor"),
        ("preprocessor.normalize", "all_features"),
        ("preprocessor.window", "hamming"),
        ("preprocessor.log_zero_guard_type", "clamp"),
        ("decoder._target_", "StatelessTransducerDecoder"),
        ("decoder.blank_as_pad", False),
        ("joint.num_extra_outputs", 5),
        ("joint.jointnet.activation", "tanh"),
        ("tokenizer.type", "wpe"),
    ],
)
def test_settings_that_cannot_be_honoured_are_named(tmp_path: Path, key: str, value: Any) -> None:
    config = configuration(**{key.replace(".", "__"): value})
    with pytest.raises(InputError) as caught:
        nemo.read(pack(tmp_path / "model.nemo", config, weights(configuration())))
    assert key in str(caught.value)
    assert str(value) in str(caught.value)


def test_weights_must_be_exactly_the_models(tmp_path: Path, hybrid: Published) -> None:
    config, tensors = hybrid
    path, name = tmp_path / "model.nemo", "encoder.layers.1.self_attn.linear_k.weight"
    with pytest.raises(InputError, match=rf"lack {name}$"):
        nemo.read(pack(path, config, {n: t for n, t in tensors.items() if n != name}))
    with pytest.raises(InputError, match=r"have unknown encoder\.layers\.7\.surprise"):
        nemo.read(pack(path, config, {**tensors, "encoder.layers.7.surprise": torch.zeros(1)}))
    with pytest.raises(InputError, match=r"encoder\.layers\.1\.attention\.qkv\.weight"):
        nemo.read(pack(path, config, {**tensors, name: torch.zeros(3, 3)}))
    with pytest.raises(InputError, match=r"lack encoder\.layers\.2.* and \d+ more"):
        nemo.read(pack(path, configuration(encoder__n_layers=3), tensors))


def test_absurd_sizes_cost_no_memory(tmp_path: Path, hybrid: Published) -> None:
    config = configuration(encoder__d_model=1 << 22, joint__jointnet__joint_hidden=1 << 30)
    with pytest.raises(InputError, match="another shape"):
        nemo.read(pack(tmp_path / "model.nemo", config, hybrid[1]))


def test_stored_front_end_must_be_ours(tmp_path: Path, hybrid: Published) -> None:
    config, tensors = hybrid
    window = {"preprocessor.featurizer.window": torch.hann_window(400, periodic=False)}
    path = tmp_path / "model.nemo"
    assert not any("window" in name for name in nemo.read(pack(path, config, {**tensors, **window})).tensors)
    window = {"preprocessor.featurizer.window": torch.hamming_window(400)}
    with pytest.raises(InputError, match="another window"):
        nemo.read(pack(path, config, {**tensors, **window}))


def member(name: str, kind: bytes, target: str = "") -> Callable[[tarfile.TarFile], None]:
    def change(archive: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        archive.addfile(info)

    return change


def sparse(archive: tarfile.TarFile) -> None:
    """A file of 1 GB that takes 512 bytes: GNU's sparse header says where its only piece lies."""
    info = tarfile.TarInfo("./model_weights2.ckpt")
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:398], header[398:410] = b"00000000000\0", b"00000000000\0"
    header[483:495] = b"%011o\0" % (1 << 30)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    archive.fileobj.write(bytes(header))
    archive.offset += len(header)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (member("./tokenizer.model", tarfile.SYMTYPE, "/etc/passwd"), "a link"),
        (member("./model_config.yaml2", tarfile.LNKTYPE, "./model_weights.ckpt"), "a link"),
        (member("/etc/cron.d/x", tarfile.REGTYPE), "a name outside the archive"),
        (member("./a/../../x", tarfile.REGTYPE), "a name outside the archive"),
        (member("./pipe", tarfile.FIFOTYPE), "a device"),
        (sparse, "a sparse file"),
        (lambda archive: add(archive, "model_config.yaml", b"a: 1"), "holds model_config.yaml twice"),
    ],
)
def test_nasty_archives_are_refused(tmp_path: Path, hybrid: Published, change: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        nemo.read(pack(tmp_path / "model.nemo", *hybrid, change=change))


def test_compressed_bombs_are_refused(tmp_path: Path, hybrid: Published) -> None:
    path = tmp_path / "model.nemo"
    bomb = {"unused": bytes(96 << 20)}
    pack(path, *hybrid, mode="w:gz", files=bomb)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(InputError, match="far more than its own size"):
        nemo.read(path)


class Code:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


def test_code_in_a_pickle_is_not_run(tmp_path: Path, hybrid: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"is refused: besides tensors it names \w+\.system"):
        nemo.read(pack(tmp_path / "model.nemo", hybrid[0], {**hybrid[1], "x": Code()}))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("tensors", [[1, 2], {"a": "text"}, "text"])
def test_weights_must_be_tensors(tmp_path: Path, tensors: Any) -> None:
    with pytest.raises(InputError, match="no dictionary of tensors"):
        nemo.read(pack(tmp_path / "model.nemo", configuration(), tensors))


@pytest.mark.parametrize("kind", ["sparse", "meta", "quantized", "expanded", "complex"])
def test_weights_must_be_plain_tensors(tmp_path: Path, hybrid: Published, kind: str) -> None:
    name = "encoder.layers.1.self_attn.linear_k.weight"
    tensor = hybrid[1][name]
    odd = {
        "sparse": tensor.to_sparse(),
        "meta": tensor.to("meta"),
        "quantized": torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
        "expanded": torch.zeros(1).expand(tensor.shape),
        "complex": tensor.to(torch.complex64),
    }[kind]
    with pytest.raises(InputError, match=rf"model_weights.ckpt of model.nemo must hold plain tensors .*: {name}$"):
        nemo.read(pack(tmp_path / "model.nemo", hybrid[0], {**hybrid[1], name: odd}))


def test_weights_of_eight_bits_load(tmp_path: Path, hybrid: Published) -> None:
    name = "encoder.layers.1.self_attn.linear_k.weight"
    tensor = hybrid[1][name].to(torch.float8_e4m3fn)
    model = model_of(pack(tmp_path / "model.nemo", hybrid[0], {**hybrid[1], name: tensor}))
    joined = model.state_dict()["encoder.layers.1.attention.qkv.weight"]
    torch.testing.assert_close(joined[DIM : 2 * DIM], tensor.float(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("preprocessor.window_size", 1e308, "must be a number from"),
        ("preprocessor.dither", 10**30, "dither is a whole number of more than 63 bits"),
        ("preprocessor.window_stride", float("nan"), "must be a number from"),
        ("preprocessor.features", 2000, "n_mels must be from 1 to 1024"),
        ("encoder.dropout", 7.0, "dropout probability has to be between 0 and 1"),
        ("encoder.att_context_size", [[10**9, 0]], "-1 for no limit"),
        ("encoder.att_context_probs", [0.5, float("inf")], "context_weights"),
        ("encoder.feat_in", "9" * 6000, "must be a whole number"),
        ("joint.vocabulary", [None], "different single characters"),
    ],
)
def test_odd_values_are_named_in_one_sentence(tmp_path: Path, key: str, value: Any, said: str) -> None:
    config = configuration(**{key.replace(".", "__"): value})
    if key.endswith(".features"):
        config["encoder"]["feat_in"] = value
    with pytest.raises(InputError, match=said) as caught:
        nemo.read(pack(tmp_path / "model.nemo", config, weights(configuration())))
    assert "model.nemo" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(("written", "weight"), [({}, 0.97), ({"preemph": None}, 0.0), ({"preemph": 0.9}, 0.9)])
def test_preemphasis_is_the_writers(tmp_path: Path, written: dict[str, Any], weight: float) -> None:
    config = configuration()
    config["preprocessor"].update(written)
    assert load(tmp_path, config).front.preemphasis == weight


@pytest.mark.parametrize("mode", ["w:", "w:gz"])
@pytest.mark.parametrize("part", [0.2, 0.6, 0.9])
def test_truncated_files_are_refused(tmp_path: Path, hybrid: Published, mode: str, part: float) -> None:
    path = pack(tmp_path / "model.nemo", *hybrid, mode=mode)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(InputError, match=r"model\.nemo is not a complete archive: [^\n]+$"):
        nemo.read(path)


def test_truncated_weights_are_refused(tmp_path: Path, hybrid: Published) -> None:
    path = tmp_path / "model.nemo"
    buffer = io.BytesIO()
    torch.save(hybrid[1], buffer)
    with tarfile.open(pack(tmp_path / "whole.nemo", *hybrid)) as whole, tarfile.open(path, "w:") as archive:
        config = whole.extractfile("./model_config.yaml")
        assert config is not None
        add(archive, "./model_config.yaml", config.read())
        add(archive, "./model_weights.ckpt", buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(InputError, match=r"model_weights\.ckpt of model\.nemo is no complete PyTorch file"):
        nemo.read(path)


@pytest.mark.parametrize("name", ["model_config.yaml", "model_weights.ckpt"])
def test_archives_without_a_model_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "other.nemo"
    with tarfile.open(path, "w:") as archive:
        other = {"model_config.yaml": "model_weights.ckpt", "model_weights.ckpt": "model_config.yaml"}[name]
        add(archive, other, b"a: 1")
    with pytest.raises(InputError, match=f"no NeMo model: it holds no {name}"):
        nemo.read(path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"a: 2001-99-99", "model_config.yaml of model.nemo is no YAML: month must be in 1..12"),
        (b"a: [1", "is no YAML"),
        (b"- 1", "must be a YAML mapping, got list"),
        (b"\xff\xfe\xff", "is no YAML"),
        (
            b"a0: &a0 [x, x]\n" + b"".join(b"a%d: &a%d [%s]\n" % (i, i, b"*a%d, " % (i - 1) * 9) for i in range(1, 12)),
            "unfolds",
        ),
        (b"a: &a [*a]", "unfolds"),
    ],
)
def test_configurations_that_are_none_are_refused(tmp_path: Path, text: bytes, sentence: str) -> None:
    path = tmp_path / "model.nemo"
    with tarfile.open(path, "w:") as archive:
        add(archive, "model_config.yaml", text)
        add(archive, "model_weights.ckpt", b"")
    with pytest.raises(InputError, match=sentence):
        nemo.read(path)
