"""NeMo's cache-aware FastConformer: the same numbers from the same weights."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import speechkit
from speechkit.asr.ctc import ctc_loss
from speechkit.asr.decoding.greedy import CtcGreedy, RnntGreedy
from speechkit.asr.model import Recognizer
from speechkit.asr.nemo_stream import CacheAwareEncoder, NemoCache, NemoStream
from speechkit.asr.transducer import label_scores, lattice_loss, transducer_loss
from speechkit.features import LogMel
from speechkit.importers.nemo import convert, published_names
from speechkit.importers.nemo_config import Section, translate
from speechkit.release import Release, build, build_model
from speechkit.streaming.stream import Stream, run
from tests.paths import GOLDENS, needs_goldens

pytestmark = [pytest.mark.parity, needs_goldens]

FOLDER = GOLDENS / "fastconformer"
FASTEMIT = 0.005  # of the hybrid objective in train.npz
Context = tuple[int, int]


class Golden(NamedTuple):
    """What the reference computed, and our model with its weights."""

    config: dict[str, Any]
    io: dict[str, np.ndarray]
    train: dict[str, np.ndarray]
    weights: dict[str, Tensor]
    translated: dict[str, Any]
    model: Recognizer

    def get(self, name: str) -> Tensor:
        return torch.from_numpy(self.io[name].copy())

    def mel(self, name: str = "mel") -> Tensor:
        """(batch, frames, n_mels)."""
        return self.get(name).transpose(1, 2)

    def wave(self) -> Tensor:
        return self.get("pcm16").float()[None] / 32768


def load(folder: Path) -> Golden:
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "weights.safetensors")
    section = Section("config.json", config["model"])
    translated = translate(section, config["golden"]["vocab_size"], None)
    release = Release("golden", {"model": translated}, convert(weights, translated, "golden"), None)
    model = build_model(release)
    assert isinstance(model, Recognizer)
    io, train = (dict(np.load(folder / name)) for name in ("io.npz", "train.npz"))
    return Golden(config, io, train, weights, translated, model)


@pytest.fixture(scope="module")
def golden() -> Golden:
    return load(FOLDER)


def contexts(kind: str) -> list[Context]:
    """The golden's contexts, all or those that were streamed; none where there is no golden."""
    path = FOLDER / "config.json"
    found = json.loads(path.read_text())["golden"][kind] if path.is_file() else []
    return [(left, right) for left, right in found]


def tag(context: Context) -> str:
    return f"{context[0]}_{context[1]}"


def close(ours: Tensor, theirs: Tensor) -> None:
    """Within 1e-4, and a little for the rounding of large values."""
    torch.testing.assert_close(ours.detach(), theirs, rtol=1e-6, atol=1e-4)


def steps(encoded: Tensor) -> Tensor:
    """(batch, dim, steps), as NeMo has it, to (batch, steps, dim)."""
    return encoded.transpose(1, 2)


# The front end


def test_mel_is_the_references(golden: Golden) -> None:
    wave = golden.wave()
    mel, lengths = golden.model.front(wave, torch.tensor([wave.shape[1]]))
    assert lengths.tolist() == golden.io["mel_len"].tolist()
    close(mel, golden.mel())


def test_mel_of_a_batch_is_the_references(golden: Golden) -> None:
    lengths = golden.get("batch_wav_len")
    wave = golden.wave()[:, : int(lengths.max())].repeat(len(lengths), 1)
    wave = wave * (torch.arange(wave.shape[1]) < lengths[:, None])
    mel, frames = golden.model.front(wave, lengths)
    assert frames.tolist() == golden.io["batch_mel_len"].tolist()
    close(mel, golden.mel("batch_mel"))


def test_normalised_mel_is_the_references(golden: Golden) -> None:
    front: LogMel = build({**golden.translated["front"], "normalize": "per_feature"})
    wave = golden.wave()
    close(front.eval()(wave, torch.tensor([wave.shape[1]]))[0], golden.mel("mel_per_feature"))


def test_streamed_mel_is_the_references(golden: Golden) -> None:
    frames = int(golden.io["mel_len"][0])
    close(run(golden.model.front, [golden.wave()[0][:, None]])[0], golden.mel()[0, :frames])


# The encoder, whole


def test_subsampling_is_the_references(golden: Golden) -> None:
    out, lengths = golden.model.encoder.subsampling(golden.mel(), golden.get("mel_len"))
    assert lengths.tolist() == golden.io["pre_encode_len"].tolist()
    close(out, golden.get("pre_encode_out"))


@pytest.mark.parametrize("context", contexts("ctx"), ids=tag)
def test_encoder_is_the_references_at_every_context(golden: Golden, context: Context) -> None:
    out, lengths = golden.model.encoder(golden.mel(), golden.get("mel_len"), context)
    assert lengths.tolist() == golden.io[f"off_{tag(context)}_len"].tolist()
    close(out, steps(golden.get(f"off_{tag(context)}_enc")))


@pytest.mark.parametrize("context", contexts("ctx"), ids=tag)
def test_encoder_of_a_batch_is_the_references(golden: Golden, context: Context) -> None:
    out, lengths = golden.model.encoder(golden.mel("batch_mel"), golden.get("batch_mel_len"), context)
    assert lengths.tolist() == golden.io[f"offbatch_{tag(context)}_len"].tolist()
    theirs = steps(golden.get(f"offbatch_{tag(context)}_enc"))
    for row, count in enumerate(lengths.tolist()):
        close(out[row, :count], theirs[row, :count])


def test_every_layer_is_the_references(golden: Golden) -> None:
    context = contexts("ctx")[0]
    outputs: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda *call: outputs.append(call[-1])) for layer in golden.model.encoder.layers
    ]
    golden.model.encoder(golden.mel(), golden.get("mel_len"), context)
    for hook in hooks:
        hook.remove()
    assert len(outputs) == len(golden.model.encoder.layers) > 0
    count = int(golden.io[f"off_{tag(context)}_len"][0])
    for i, output in enumerate(outputs):
        close(output[:, :count], golden.get(f"off_{tag(context)}_layer{i}")[:, :count])


def test_unlimited_attention_is_the_references(golden: Golden) -> None:
    config = {**golden.translated["encoder"], "contexts": [[-1, -1]], "context_weights": None, "style": "regular"}
    encoder = build(config).eval()
    encoder.load_state_dict(golden.model.encoder.state_dict())
    close(encoder(golden.mel(), golden.get("mel_len"))[0], steps(golden.get("off_full_enc")))


# The encoder, chunk by chunk


@pytest.mark.parametrize("context", contexts("two"), ids=tag)
def test_our_stream_is_the_references(golden: Golden, context: Context) -> None:
    """NeMo's own stream is exact where the right context is 1 or more, and so is ours at every context."""
    if context[1] < 1 or golden.model.encoder.style == "regular":
        pytest.skip("NeMo's stream is exact with chunks that have a look-ahead only")
    ours = run(golden.model.encoder.at(context), [golden.mel()[0]])[0]
    lengths = golden.io[f"st_{tag(context)}_out_lens"].tolist()
    theirs = [golden.get(f"st_{tag(context)}_s{i}_out")[0].T[:count] for i, count in enumerate(lengths)]
    close(ours, torch.cat(theirs))


def replay(
    golden: Golden, stream: CacheAwareEncoder, prefix: str, mel: Tensor, lengths: Tensor
) -> tuple[NemoCache, int]:
    """Runs all chunks, comparing what the golden has of each; the last caches and the number of chunks."""
    cache, count = stream.initial(len(mel)), 0
    for count, (piece, piece_lengths, first) in enumerate(stream.pieces(mel, lengths), 1):
        name = f"{prefix}_s{count - 1}"
        if f"{name}_in_shape" in golden.io:
            shape = golden.io[f"{name}_in_shape"].tolist()
            assert [len(piece), piece.shape[2], piece.shape[1], int(piece_lengths[0])] == shape
        if f"{name}_chunk" in golden.io:
            close(piece, golden.mel(f"{name}_chunk"))
        out, out_lengths, cache = stream.step(piece, piece_lengths, cache, first)
        assert out_lengths.tolist() == np.atleast_1d(golden.io[f"{prefix}_out_lens"][count - 1]).tolist()
        theirs = steps(golden.get(f"{name}_out"))
        for row, valid in enumerate(out_lengths.tolist()):
            close(out[row, :valid], theirs[row, :valid])
        check_caches(golden, name, cache)
    return cache, count


def check_caches(golden: Golden, name: str, cache: NemoCache) -> None:
    """NeMo's caches have the layers first."""
    if f"{name}_cache_len" in golden.io:
        assert cache.length.tolist() == golden.io[f"{name}_cache_len"].tolist()
    if f"{name}_cache_channel" in golden.io:
        close(cache.channel.transpose(0, 1), golden.get(f"{name}_cache_channel"))
        close(cache.time.transpose(0, 1), golden.get(f"{name}_cache_time"))


@pytest.mark.parametrize("pad", [False, True], ids=["", "pad"])
@pytest.mark.parametrize("context", contexts("two"), ids=tag)
@torch.no_grad()
def test_reference_stream_has_the_references_outputs_and_caches(golden: Golden, context: Context, pad: bool) -> None:
    stream, prefix = CacheAwareEncoder(golden.model.encoder, context, pad), f"st_{tag(context)}" + "_pad" * pad
    mel = golden.mel()
    cache, count = replay(golden, stream, prefix, mel, torch.tensor([mel.shape[1]]))
    assert count == len(golden.io[f"{prefix}_out_lens"])
    check_caches(golden, f"{prefix}_final", cache)


@pytest.mark.parametrize("context", contexts("two"), ids=tag)
def test_reference_stream_has_the_references_grid(golden: Golden, context: Context) -> None:
    wanted = golden.config["golden"]["streaming_cfg"][tag(context)]
    stream = CacheAwareEncoder(golden.model.encoder, context)
    assert list(stream.chunk_frames) == wanted["chunk_size"]
    assert list(stream.shift_frames) == wanted["shift_size"]
    assert stream.cache_drop == wanted["cache_drop_size"]
    assert stream.left == wanted["last_channel_cache_size"]
    assert stream.valid_steps == wanted["valid_out_len"]


@torch.no_grad()
def test_reference_stream_of_a_batch_is_the_references(golden: Golden) -> None:
    prefixes = [f"stb_{tag(context)}" for context in contexts("two")]
    found = [(c, p) for c, p in zip(contexts("two"), prefixes, strict=True) if f"{p}_out_lens" in golden.io]
    assert found
    for context, prefix in found:
        stream = CacheAwareEncoder(golden.model.encoder, context)
        cache, count = replay(golden, stream, prefix, golden.mel("batch_mel"), golden.get("batch_mel_len"))
        assert count == len(golden.io[f"{prefix}_out_lens"])
        assert cache.length.tolist() == golden.io[f"{prefix}_final_cache_len"].tolist()


@torch.no_grad()
def test_exported_steps_are_the_references(golden: Golden) -> None:
    """`forward_for_export`: batch-first caches, every chunk of the same size."""
    shape = (golden.io["export_s0_cache_last_channel_next"].shape[2], golden.io["export_s0_outputs"].shape[2] - 1)
    context = next(context for context in contexts("ctx") if context == shape)
    stream = CacheAwareEncoder(golden.model.encoder, context, pad_and_drop=True)
    cache, n = stream.initial(1), 0
    while f"export_s{n}_outputs" in golden.io:
        name = f"export_s{n}"
        mel, lengths = golden.mel(f"{name}_in_audio_signal"), golden.get(f"{name}_in_length")
        out, out_lengths, cache = stream.step(mel, lengths, cache, first=n == 0, keep_all=False)
        close(out, steps(golden.get(f"{name}_outputs")))
        assert out_lengths.tolist() == golden.io[f"{name}_encoded_lengths"].tolist()
        close(cache.channel, golden.get(f"{name}_cache_last_channel_next"))
        close(cache.time, golden.get(f"{name}_cache_last_time_next"))
        assert cache.length.tolist() == golden.io[f"{name}_cache_last_channel_next_len"].tolist()
        n += 1
    assert n > 0


@pytest.mark.parametrize("context", contexts("two"), ids=tag)
@torch.no_grad()
def test_reference_stream_module_is_the_references(golden: Golden, context: Context) -> None:
    """`compat="reference"` in pieces of any size."""
    if golden.model.encoder.style == "regular":
        pytest.skip("compat='reference' is for chunked encoders")
    module = NemoStream(golden.model.encoder, context)
    stream, outputs, mel = Stream(module), [], golden.mel()[0]
    for piece in mel.split(37):
        outputs += stream.push(piece)
    ours = torch.cat(outputs + stream.flush())
    lengths = golden.io[f"st_{tag(context)}_out_lens"].tolist()
    theirs = torch.cat([golden.get(f"st_{tag(context)}_s{i}_out")[0].T[:n] for i, n in enumerate(lengths)])
    close(ours[: len(theirs)], theirs)


# Heads and decoding


@pytest.fixture(scope="module")
def encoded(golden: Golden) -> tuple[Tensor, Tensor]:
    """The reference's encoder output at the first context, (batch, steps, dim) and lengths."""
    first = tag(contexts("ctx")[0])
    return steps(golden.get(f"off_{first}_enc")), golden.get(f"off_{first}_len")


def emitted(chunk: Any) -> tuple[list[int], list[int]]:
    """Tokens and steps that a greedy decoder emitted for one row."""
    rows = chunk.values[0, : int(chunk.lengths[0])]
    return rows[:, 0].long().tolist(), rows[:, 1].long().tolist()


@torch.no_grad()
def test_ctc_head_is_the_references(golden: Golden, encoded: tuple[Tensor, Tensor]) -> None:
    assert golden.model.ctc is not None
    log_probs = golden.model.ctc(encoded[0])
    close(log_probs, golden.get("ctc_logprobs"))
    assert log_probs[0].argmax(-1).tolist() == golden.io["ctc_frame_argmax"].tolist()


@torch.no_grad()
def test_greedy_ctc_gives_the_references_tokens(golden: Golden, encoded: tuple[Tensor, Tensor]) -> None:
    assert golden.model.ctc is not None
    assert emitted(CtcGreedy(golden.model.ctc)(*encoded))[0] == golden.io["ctc_greedy"].tolist()


@torch.no_grad()
def test_predictor_is_the_references(golden: Golden) -> None:
    assert golden.model.predictor is not None
    close(golden.model.predictor(golden.get("targets")), steps(golden.get("pred_out")))


@torch.no_grad()
def test_joiner_is_the_references(golden: Golden, encoded: tuple[Tensor, Tensor]) -> None:
    assert golden.model.joiner is not None
    theirs = golden.get("joint_logp_T12")
    logits = golden.model.joiner(encoded[0][:, : theirs.shape[1], None], steps(golden.get("pred_out"))[:, None])
    close(logits.log_softmax(-1), theirs)


def transducer_greedy(golden: Golden) -> RnntGreedy:
    model = golden.model
    assert model.predictor is not None
    assert model.joiner is not None
    most = golden.config["model"]["decoding"]["greedy"]["max_symbols"]
    return RnntGreedy(model.predictor, model.joiner, max_symbols=most)


@torch.no_grad()
def test_greedy_transducer_gives_the_references_tokens(golden: Golden, encoded: tuple[Tensor, Tensor]) -> None:
    tokens, frames = emitted(transducer_greedy(golden)(*encoded))
    assert tokens == golden.io["rnnt_greedy_tokens"].tolist()
    assert frames == golden.io["rnnt_greedy_frames"].tolist()


@pytest.mark.parametrize("context", contexts("two"), ids=tag)
@torch.no_grad()
def test_streamed_decodes_are_the_references(golden: Golden, context: Context) -> None:
    """Our stream where NeMo's is exact, else NeMo's arithmetic."""
    encoder = golden.model.encoder
    stream = encoder.at(context) if context[1] > 0 else NemoStream(encoder, context)
    # NeMo's simulator drops an end of fewer than eight frames.
    out = run(stream, [golden.mel()[0]])[0][None, : int(golden.io[f"st_{tag(context)}_out_lens"].sum())]
    lengths = torch.tensor([out.shape[1]])
    tokens = emitted(transducer_greedy(golden)(out, lengths))[0]
    assert tokens == golden.io[f"stream_{tag(context)}_rnnt_tokens"].tolist()
    assert golden.model.ctc is not None
    # The reference kept the best entry of every step, blanks and repeats included.
    assert golden.model.ctc(out)[0].argmax(-1).tolist() == golden.io[f"stream_{tag(context)}_ctc_tokens"].tolist()


def test_greedy_text_is_the_references(golden: Golden, encoded: tuple[Tensor, Tensor]) -> None:
    tokenizer = speechkit.load(FOLDER / "tiny.nemo").tokenizer
    texts = golden.config["golden"]["texts"]
    assert tokenizer.decode(golden.io["rnnt_greedy_tokens"].tolist()) == texts["rnnt_offline"]
    assert tokenizer.decode(golden.io["ctc_greedy"].tolist()) == texts["ctc_offline"]


# Losses and gradients


@torch.no_grad()
def test_losses_are_the_references(golden: Golden, encoded: tuple[Tensor, Tensor]) -> None:
    model, targets = golden.model, golden.get("targets")
    assert model.ctc is not None
    assert model.predictor is not None
    assert model.joiner is not None
    count = torch.tensor([targets.shape[1]])
    transducer = transducer_loss(model.joiner, encoded[0], model.predictor(targets), targets, encoded[1], count)
    close(transducer, golden.get("rnnt_loss"))
    close(ctc_loss(model.ctc(encoded[0]), targets, encoded[1], count, model.blank), golden.get("ctc_loss"))


def fastemit_weights() -> list[str]:
    path = FOLDER / "train.npz"
    names = np.load(path).files if path.is_file() else []
    return [name.removeprefix("fe_loss_") for name in names if name.startswith("fe_loss_")]


@pytest.mark.parametrize("weight", fastemit_weights())
def test_fastemit_is_the_references(golden: Golden, weight: str) -> None:
    logits = torch.from_numpy(golden.train["fe_logits"]).requires_grad_()
    targets = golden.get("targets")
    scores = label_scores(logits, targets)
    lengths, count = torch.tensor([logits.shape[1]]), torch.tensor([logits.shape[2] - 1])
    loss = lattice_loss(*scores, lengths, count, float(weight))
    loss.sum().backward()
    close(loss, torch.from_numpy(golden.train[f"fe_loss_{weight}"]))
    assert logits.grad is not None
    close(logits.grad, torch.from_numpy(golden.train[f"fe_grad_{weight}"]))


def hybrid(golden: Golden, transducer: Tensor, ctc: Tensor) -> Tensor:
    """The whole objective of each utterance's transducer loss and the mean CTC loss."""
    weight = golden.config["model"]["aux_ctc"]["ctc_loss_weight"]
    return (1 - weight) * transducer.mean() + weight * ctc


@pytest.fixture(scope="module")
def trained(golden: Golden) -> tuple[Golden, dict[str, Tensor], Tensor, Tensor]:
    """The hybrid objective on the batch: gradients by NeMo's names, each utterance's RNNT loss, the mean CTC loss."""
    model, train = golden.model, golden.train
    targets, count = torch.from_numpy(train["hy_targets"]), torch.from_numpy(train["hy_target_len"])
    out, lengths = model.encoder(golden.mel("batch_mel"), golden.get("batch_mel_len"), contexts("ctx")[0])
    assert lengths.tolist() == train["hy_enc_len"].tolist()
    losses = model.losses(out, lengths, targets, count, FASTEMIT)
    ctc = losses.ctc.mean()
    model.zero_grad()
    hybrid(golden, losses.transducer, ctc).backward()
    gradients: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        names = published_names(name, golden.weights, golden.translated)
        assert parameter.grad is not None
        for part, gradient in zip(names, parameter.grad.chunk(len(names)), strict=True):
            gradients[part] = gradient.clone()
    model.zero_grad()
    return golden, gradients, losses.transducer.detach(), ctc.detach()


Trained = tuple[Golden, dict[str, Tensor], Tensor, Tensor]


def test_hybrid_objective_is_the_references(trained: Trained) -> None:
    golden, _, transducer, ctc = trained
    close(transducer, torch.from_numpy(golden.train["hy_rnnt_each"]))
    close(ctc, torch.tensor(float(golden.train["hy_ctc"])))
    close(hybrid(golden, transducer, ctc), torch.tensor(float(golden.train["hy_total"])))


def test_every_gradient_has_the_references_norm(trained: Trained) -> None:
    golden, gradients, _, _ = trained
    norms = dict(zip(golden.train["hy_gradnorm_names"].tolist(), golden.train["hy_gradnorm"].tolist(), strict=True))
    assert gradients.keys() == norms.keys()
    for name, norm in norms.items():
        assert float(gradients[name].double().norm()) == pytest.approx(norm, rel=1e-3, abs=1e-4), name


def test_whole_gradients_are_the_references(trained: Trained) -> None:
    golden, gradients, _, _ = trained
    names = [name for name in golden.train if name.startswith("hy_grad:")]
    assert names
    for name in names:
        theirs = torch.from_numpy(golden.train[name])
        ours = gradients[name.removeprefix("hy_grad:")].reshape(theirs.shape)
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))


# The file


def test_the_published_file_is_the_weights(golden: Golden) -> None:
    transcriber = speechkit.load(FOLDER / "tiny.nemo")
    ours, theirs = transcriber.model.state_dict(), golden.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert transcriber.tokenizer.pieces == golden.config["golden"]["pieces"]
    assert transcriber.model.contexts == contexts("ctx")


def test_transcriber_reproduces_the_references_text(golden: Golden) -> None:
    transcriber = speechkit.load(FOLDER / "tiny.nemo")
    text = transcriber.transcribe(golden.wave()[0].numpy(), decoder="ctc").text
    assert text == golden.config["golden"]["texts"]["ctc_offline"]
