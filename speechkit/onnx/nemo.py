"""Exports in NeMo's layout, with the metadata that sherpa-onnx reads: it runs them as streaming NeMo models.

Names, ranks and order of inputs and outputs are NeMo's. What the caches hold is our own state, which is exact where
NeMo's padded export is not (its steps lie 70 ms beside those of the whole recording): keys and values instead of the
attention's inputs, and the subsampling's left context in further layers of `cache_last_channel`, so that a call takes
new frames alone and computes none twice.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from speechkit.asr.conformer import Context
from speechkit.asr.conformer_stream import ConformerState, LayerState
from speechkit.asr.model import Recognizer
from speechkit.asr.transcriber import Transcriber
from speechkit.errors import InputError
from speechkit.nn.subsampling import SubsamplingState
from speechkit.onnx.folder import AUTHOR, TOKENS
from speechkit.onnx.parity import CHUNKS, Parity, compared
from speechkit.onnx.write import JointStep, PredictorStep
from speechkit.streaming.export import EXAMPLE_ROWS, export_function
from speechkit.streaming.onnx import OnnxGraph
from speechkit.streaming.state import Chunk

INPUTS = ("audio_signal", "length", "cache_last_channel", "cache_last_time", "cache_last_channel_len")
NEXT = ("encoded_lengths", "cache_last_channel_next", "cache_last_time_next", "cache_last_channel_next_len")
PENDING = 7  # frames that wait for their group of eight after every call


class NemoEncoder(nn.Module):
    """A Conformer's stream at one context, ``8 * (right + 1)`` frames a call, with a CTC head behind it or without."""

    def __init__(self, model: Recognizer, context: Context, head: bool) -> None:
        super().__init__()
        self.encoder, self.head = model.encoder, model.ctc if head else None
        self.mean, self.deviation = model.front.mean, model.front.deviation
        self.context, self.stream = context, model.encoder.at(context)
        self.frames, self.steps = model.encoder.stride * (context[1] + 1), context[1] + 1
        bands, channels = [model.encoder.subsampling.n_mels], model.encoder.subsampling.channels
        for _ in range(2):
            bands.append(bands[-1] // 2 + 1)
        self.left = [(channels if i else 1, 1, band) for i, band in enumerate(bands)]
        self.sizes = [PENDING * bands[0], *(c * band for c, _, band in self.left)]
        self.slot = context[0] * 2 * model.encoder.dim  # numbers of a layer's keys and values
        self.spare = -(-sum(self.sizes) // self.slot)  # layers that the subsampling's context takes
        kernel = self.stream.init_state(1)[1].layers[0].conv_left.shape[1]
        self.channel_dims = (len(model.encoder.layers) + self.spare, context[0], 2 * model.encoder.dim)
        self.time_dims = (len(model.encoder.layers), model.encoder.dim, kernel)

    def forward(
        self, audio_signal: Tensor, length: Tensor, channel: Tensor, time: Tensor, count: Tensor
    ) -> tuple[Any, ...]:
        """NeMo's: (batch, mels, frames), (batch,), the caches and how many steps there were -> the same of the next."""
        x = (audio_signal.transpose(1, 2) - self.mean) / self.deviation
        last = torch.zeros_like(length, dtype=torch.bool)
        y, (subsampling, conformer) = self.stream.step(Chunk(x, length, last), self._unpacked(channel, time, count))
        encoded = y.values if self.head is None else self.head(y.values)
        memory = torch.stack([layer.memory for layer in conformer.layers], dim=1)
        parts = [subsampling.pending, *subsampling.left]
        flat = torch.cat([part.flatten(1) for part in parts], dim=1)
        flat = nn.functional.pad(flat, (0, self.spare * self.slot - flat.shape[1]))
        channel = torch.cat([memory, flat.view(-1, self.spare, *memory.shape[2:])], dim=1)
        time = torch.stack([layer.conv_left.transpose(1, 2) for layer in conformer.layers], dim=1)
        return (encoded.transpose(1, 2) if self.head is None else encoded), y.lengths, channel, time, conformer.steps

    def _unpacked(self, channel: Tensor, time: Tensor, count: Tensor) -> tuple[SubsamplingState, ConformerState]:
        """The state, whose counts all follow from the number of steps, for every call brings as many frames."""
        layers = time.shape[1]
        flat = channel[:, layers:].flatten(1)[:, : sum(self.sizes)].split(self.sizes, dim=1)
        begun = count > 0
        subsampling = SubsamplingState(
            flat[0].view(-1, PENDING, self.encoder.subsampling.n_mels), PENDING * begun,
            (self.encoder.stride * count - PENDING) * begun, count,
            tuple(part.view(-1, *shape) for part, shape in zip(flat[1:], self.left, strict=True)),
        )  # fmt: skip
        held = channel.new_zeros(channel.shape[0], 0, 2 * self.encoder.dim)
        states = tuple(LayerState(channel[:, i], held, time[:, i].transpose(1, 2)) for i in range(layers))
        pending = channel.new_zeros(channel.shape[0], self.steps - 1, self.encoder.dim)
        return subsampling, ConformerState(pending, torch.zeros_like(count), count, count, states)


class NemoDecoder(nn.Module):
    """The prediction network on one token a row, its states time-major as NeMo's are."""

    def __init__(self, inner: PredictorStep) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, targets: Tensor, target_length: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, ...]:
        """(batch, 1) int32, (batch,) int32, (layers, batch, dim) states -> (batch, joiner dim, 1), length, states."""
        out, hidden, cell = self.inner(targets[:, 0].long(), hidden.transpose(0, 1), cell.transpose(0, 1))
        return out[..., None], target_length.clone(), hidden.transpose(0, 1), cell.transpose(0, 1)


class NemoJoiner(nn.Module):
    """The joint network on channels-first inputs."""

    def __init__(self, inner: JointStep) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, encoder_outputs: Tensor, decoder_outputs: Tensor) -> Tensor:
        """(batch, encoder_dim, 1) and (batch, joiner dim, 1) -> (batch, 1, 1, vocab_size + 1) logits."""
        return self.inner(encoder_outputs.transpose(1, 2), decoder_outputs[..., 0])[:, :, None]


def write_nemo(transcriber: Transcriber, folder: Path, context: Context) -> list[Path]:
    """Writes one context's files: ``encoder decoder joiner.onnx`` of a transducer, ``model.onnx`` of CTC, tokens.txt.

    Raises:
        InputError: this layout cannot hold the model.
    """
    model = transcriber.network
    if model.encoder.style != "chunked_limited" or context[0] < 1 or not model.streams(context):
        raise InputError("the layout of NeMo is for chunked attention with a limited left context")
    files = []
    if model.ctc is not None:
        files.append(_write_encoder(model, context, folder / "model.onnx", head=True))
    if model.predictor is not None and model.joiner is not None:
        files.append(_write_encoder(model, context, folder / "encoder.onnx", head=False))
        files += _write_transducer(model, folder)
    lines = [f"{piece} {i}" for i, piece in enumerate([*transcriber.tokenizer.pieces, "<blk>"])]
    (folder / TOKENS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return files


def _write_encoder(model: Recognizer, context: Context, path: Path, head: bool) -> Path:
    step = NemoEncoder(model, context, head)
    rows, mels = EXAMPLE_ROWS, model.front.n_mels
    inputs = (
        torch.randn(rows, mels, step.frames), torch.full((rows,), step.frames),
        torch.zeros(rows, *step.channel_dims), torch.zeros(rows, *step.time_dims), torch.zeros(rows, dtype=torch.int64),
    )  # fmt: skip
    with torch.no_grad():
        step(*inputs)
        export_function(step, inputs, path, INPUTS, ["logprobs" if head else "outputs", *NEXT])
    kind = (
        "EncDecHybridRNNTCTCBPEModel"
        if len(model.decoders) == 2
        else "EncDecCTCModelBPE"
        if head
        else "EncDecRNNTBPEModel"
    )
    about: dict[str, Any] = {
        "model_type": kind, "version": "1", "model_author": AUTHOR, "comment": "exact streaming state",
        "vocab_size": model.blank, "window_size": step.frames, "chunk_shift": step.frames,
        "subsampling_factor": model.encoder.stride, "normalize_type": "NA",
    }  # fmt: skip
    for name, dims in (("cache_last_channel", step.channel_dims), ("cache_last_time", step.time_dims)):
        about |= {f"{name}_dim{i}": dim for i, dim in enumerate(dims, 1)}
    if model.predictor is not None:
        about |= {"pred_rnn_layers": model.predictor.layers, "pred_hidden": model.predictor.dim}
    _describe(path, about)
    return path


def _write_transducer(model: Recognizer, folder: Path) -> Sequence[Path]:
    predictor, joiner = model.predictor, model.joiner
    assert predictor is not None
    assert joiner is not None
    rows = EXAMPLE_ROWS
    state = torch.zeros(predictor.layers, rows, predictor.dim)
    one = torch.ones(rows, dtype=torch.int32)
    decoder, joint = folder / "decoder.onnx", folder / "joiner.onnx"
    time_major = ("layers", "batch")
    export_function(
        NemoDecoder(PredictorStep(predictor, joiner)), (one[:, None] * 0, one, state, state.clone()), decoder,
        ["targets", "target_length", "states_1", "states_2"],
        ["outputs", "prednet_lengths", "states_1_next", "states_2_next"],
        {"states_1": time_major, "states_2": time_major},
    )  # fmt: skip
    export_function(
        NemoJoiner(JointStep(joiner)),
        (torch.randn(rows, model.encoder.dim, 1), torch.randn(rows, joiner.predictor.out_features, 1)),
        joint, ["encoder_outputs", "decoder_outputs"], ["outputs"],
    )  # fmt: skip
    return [decoder, joint]


def _describe(path: Path, about: dict[str, Any]) -> None:
    model = onnx.load(path)
    del model.metadata_props[:]
    for key, value in about.items():
        model.metadata_props.add(key=key, value=str(value))
    onnx.save(model, path)


@torch.inference_mode()
def nemo_heads_parity(transcriber: Transcriber, folder: Path) -> list[Parity]:
    """The transducer's two small graphs in this layout beside the model, on noise."""
    torch.manual_seed(0)
    model = transcriber.network
    if model.predictor is None or model.joiner is None:
        return []
    decoder, joiner = NemoDecoder(PredictorStep(model.predictor, model.joiner)), NemoJoiner(JointStep(model.joiner))
    rows, found = 3, []
    hidden = torch.randn(model.predictor.layers, rows, model.predictor.dim)
    given = (
        torch.arange(rows, dtype=torch.int32)[:, None],
        torch.ones(rows, dtype=torch.int32),
        hidden,
        hidden.flip(0),
    )
    pairs = list(zip(decoder(*given), OnnxGraph(folder / "decoder.onnx")(*given), strict=True))
    found.append(compared(None, "decoder.onnx", [(ours.float(), theirs.float()) for ours, theirs in pairs]))
    steps = torch.randn(rows, model.encoder.dim, 1)
    out = pairs[0][0]
    found.append(
        compared(None, "joiner.onnx", [(joiner(steps, out), OnnxGraph(folder / "joiner.onnx")(steps, out)[0])])
    )
    return found


@torch.inference_mode()
def nemo_parity(transcriber: Transcriber, path: Path, context: Context, chunks: int = CHUNKS) -> Parity:
    """Chained calls of an encoder's graph in this layout beside the model's stream, on noise for features."""
    torch.manual_seed(0)
    model, graph = transcriber.network, OnnxGraph(path)
    head = model.ctc if path.name == "model.onnx" else None
    step, stream = NemoEncoder(model, context, head is not None), model.encoder.at(context)
    state, caches = stream.init_state(2), [torch.zeros(2, *step.channel_dims), torch.zeros(2, *step.time_dims)]
    count, full, no = torch.zeros(2, dtype=torch.int64), torch.full((2,), step.frames), torch.zeros(2, dtype=torch.bool)
    pairs = []
    for _ in range(chunks):
        x = torch.randn(2, step.frames, model.front.n_mels)
        y, state = stream.step(Chunk(x, full, no), state)
        signal = (x * model.front.deviation + model.front.mean).transpose(1, 2)
        given, _, caches[0], caches[1], count = graph(signal, full, *caches, count)
        pairs.append((y.values, given.transpose(1, 2)) if head is None else (head(y.values), given))
    return compared(context, path.name, pairs)
