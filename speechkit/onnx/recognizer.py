"""A recogniser whose parts are ONNX graphs: what `Transcriber` needs of a model, without its weights in PyTorch."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from speechkit.asr.acoustic import AcousticModel, context_within
from speechkit.asr.conformer import Context
from speechkit.asr.decoding.search import Heads
from speechkit.asr.predictor import PredictorState
from speechkit.asr.transcriber import Transcriber
from speechkit.errors import InputError
from speechkit.features import LogMel
from speechkit.onnx.read import plain
from speechkit.streaming.chain import Chain
from speechkit.streaming.onnx import Interface, OnnxGraph, OnnxStream, whole
from speechkit.streaming.state import Streaming
from speechkit.streaming.stream import run
from speechkit.tokenizers import load_tokenizer

Open = Callable[[str], OnnxGraph]
MOST_STATE = 1 << 20  # numbers of a predictor's state
ROWS = 16  # streams in a call where many recordings are given at once


def _positive(what: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:  # also NaN
        raise ValueError(f"{what} must be over 0, got {value!r:.50}")
    return float(value)


class OnnxCtcHead(nn.Module):
    """`CtcHead` as a graph."""

    def __init__(self, graph: OnnxGraph, blank: int) -> None:
        super().__init__()
        self.graph, self.blank = graph, blank

    def forward(self, encoder: Tensor) -> Tensor:
        """(batch, steps, encoder_dim) -> (batch, steps, vocab_size + 1) log-probabilities."""
        return self.graph(encoder)[0]


class OnnxPredictor(nn.Module):
    """`Predictor` as a graph, its output projected for the joint network."""

    def __init__(self, graph: OnnxGraph, blank: int, layers: int, dim: int) -> None:
        super().__init__()
        self.graph, self.blank, self.layers, self.dim = graph, blank, layers, dim

    def init_state(self, batch: int) -> PredictorState:
        """State before the first token."""
        zeros = torch.zeros(batch, self.layers, self.dim)
        return PredictorState(zeros, zeros.clone())

    def step(self, tokens: Tensor, state: PredictorState) -> tuple[Tensor, PredictorState]:
        """(batch,) last tokens, blank at the start -> (batch, joiner dim) and the next state."""
        out, hidden, cell = self.graph(tokens, *state)
        return out, PredictorState(hidden, cell)


class OnnxJoiner(nn.Module):
    """`Joiner` as a graph that projects the encoder's steps itself."""

    def __init__(self, graph: OnnxGraph) -> None:
        super().__init__()
        self.graph = graph

    def project_encoder(self, encoder: Tensor) -> Tensor:
        """As given: the graph does it."""
        return encoder

    def project_predictor(self, predictor: Tensor) -> Tensor:
        """As given: the predictor's graph did it."""
        return predictor

    def join(self, encoder: Tensor, predictor: Tensor) -> Tensor:
        """(..., encoder_dim) and (..., joiner dim), broadcast -> logits (..., vocab_size + 1)."""
        if encoder.dim() == 3 and predictor.dim() == 3 and predictor.shape[1] == 1:
            return self.graph(encoder, predictor[:, 0])[0]
        shape = torch.broadcast_shapes(encoder.shape[:-1], predictor.shape[:-1])
        rows = [x.expand(*shape, x.shape[-1]).reshape(-1, x.shape[-1]) for x in (encoder, predictor)]
        return self.graph(rows[0][:, None], rows[1])[0].view(*shape, -1)


class OnnxRecognizer(Heads, nn.Module):
    """What `meta.json` describes.

    Args:
        meta: its content.
        folder: where the graphs lie.
        threads: of ONNX Runtime for each graph.
        providers: ONNX Runtime's execution providers; the CPU's where none is named.
    """

    device = torch.device("cpu")  # of what goes in and comes out

    def __init__(self, meta: Mapping[str, Any], folder: Path, threads: int = 1, providers: Sequence[str] = ()) -> None:
        super().__init__()
        self.meta, self.folder, self._options = meta, folder, (threads, tuple(providers))
        self.rate, self.blank = whole("rate", meta["rate"], 1), whole("blank", meta["blank"], 1)
        self.step_ms = _positive("step_ms", meta["step_ms"])
        self._about = {tuple(entry["context"]): entry for entry in meta["contexts"]}
        self._interfaces = {context: Interface.from_dict(entry["stream"]) for context, entry in self._about.items()}
        for entry in self._about.values():
            plain(folder, entry["file"])
            _positive("latency_ms", entry["latency_ms"] + 1)
        if not self._about or not meta["heads"] or meta["takes"] not in ("samples", "features"):
            raise ValueError("it has no context, or no head, or takes neither samples nor features")
        self._streams: dict[Context, OnnxStream] = {}
        self.front = None if meta["takes"] == "samples" else LogMel(**meta["front"])
        self.ctc = self.predictor = self.joiner = None
        for name, head in meta["heads"].items():
            if name == "ctc":
                self.ctc = OnnxCtcHead(self._graph(head["file"]), self.blank)
            else:
                layers, dim = whole("layers", head["layers"], 1), whole("dim", head["dim"], 1)
                if layers * dim > MOST_STATE:
                    raise ValueError(f"no predictor has {layers} layers of {dim}")
                self.predictor = OnnxPredictor(self._graph(head["predictor"]), self.blank, layers, dim)
                self.joiner = OnnxJoiner(self._graph(head["joiner"]))

    def _graph(self, name: str) -> OnnxGraph:
        return OnnxGraph(plain(self.folder, name), *self._options)

    @property
    def contexts(self) -> list[Context]:
        """The look-aheads that were exported."""
        return list(self._about)

    @property
    def decoders(self) -> list[str]:
        """The heads: ``rnnt``, ``ctc``."""
        return list(self.meta["heads"])

    def latency_ms(self, context: Context) -> float:
        """Longest look-ahead of a context in milliseconds."""
        return float(self._about[context]["latency_ms"])

    def context_at(self, latency_ms: float) -> Context:
        """As `context_within` the exported contexts."""
        return context_within(latency_ms, {self.latency_ms(context): context for context in self.contexts})

    def streams(self, context: Context) -> bool:
        """Whether the context was exported."""
        return context in self._about

    def streaming(self, context: Context, chunks: int = 1) -> Streaming[Any]:
        """Samples (batch, time, 1) to encoder steps (batch, steps, dim), a chunk a call whatever `chunks` says."""
        stream = self.graph(context)
        return stream if self.front is None else Chain(self.front, stream)

    def graph(self, context: Context) -> OnnxStream:
        """The graph of a context, which takes what the export takes: samples or features."""
        if context not in self._streams:
            about = self._about[context]
            file = plain(self.folder, about["file"])
            self._streams[context] = OnnxStream(file, self._interfaces[context], *self._options)
        return self._streams[context]

    def encode(self, wave: Tensor, lengths: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        """(batch, samples) -> (batch, steps, dim) and the steps of each row, chunk by chunk, which gives the same."""
        module = self.streaming(context or self.contexts[0])
        rows = [row[:count, None] for row, count in zip(wave, lengths.tolist(), strict=True)]
        steps = run(module, rows, ROWS)
        return nn.utils.rnn.pad_sequence(steps, batch_first=True), torch.tensor([len(row) for row in steps])


def read(meta: Mapping[str, Any], folder: Path, threads: int, providers: Sequence[str]) -> Transcriber:
    """The recogniser of an export folder that `meta` describes.

    Raises:
        InputError: a graph or the tokenizer is damaged.
    """
    return with_tokenizer(OnnxRecognizer(meta, folder, threads, providers), folder)


def with_tokenizer(model: AcousticModel, folder: Path) -> Transcriber:
    """A model with the tokenizer that lies in its export; `InputError` where they do not belong together."""
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab_size != model.vocab_size:
        raise InputError(
            f"the tokenizer of {folder} has {tokenizer.vocab_size} pieces, but its model gives {model.vocab_size}"
        )
    return Transcriber(model, tokenizer)
