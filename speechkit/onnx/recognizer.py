"""A recogniser whose parts are ONNX graphs: what `Transcriber` needs of a model, without its weights in PyTorch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from speechkit.asr.conformer import Context
from speechkit.asr.decoding.search import Heads
from speechkit.asr.predictor import PredictorState
from speechkit.asr.transcriber import Transcriber
from speechkit.onnx.exported import Exported, positive, with_tokenizer
from speechkit.onnx.front import front_of
from speechkit.streaming.onnx import Interface, OnnxGraph, whole

MOST_STATE = 1 << 20  # numbers of a predictor's state


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


class OnnxRecognizer(Heads, Exported[Context]):
    """A `Recognizer` as `meta.json` describes it; arguments as of `Exported`."""

    def __init__(self, meta: Mapping[str, Any], folder: Path, threads: int = 1, providers: Sequence[str] = ()) -> None:
        super().__init__(meta, folder, threads, providers)
        self.blank = whole("blank", meta["blank"], 1)
        for entry in self._about.values():
            Interface.from_dict(entry["stream"])
            positive("latency_ms", entry["latency_ms"] + 1)
        if not meta["heads"]:
            raise ValueError("it has no head")
        self.front = None if self.takes == "samples" else front_of(meta["front"])
        self.ctc = self.predictor = self.joiner = None
        for name, head in meta["heads"].items():
            if name == "ctc":
                self.ctc = OnnxCtcHead(self.graph(head["file"]), self.blank)
            else:
                layers, dim = whole("layers", head["layers"], 1), whole("dim", head["dim"], 1)
                if layers * dim > MOST_STATE:
                    raise ValueError(f"no predictor has {layers} layers of {dim}")
                self.predictor = OnnxPredictor(self.graph(head["predictor"]), self.blank, layers, dim)
                self.joiner = OnnxJoiner(self.graph(head["joiner"]))

    def context(self, numbers: Sequence[int]) -> Context:
        """Left and right steps."""
        left, right = numbers
        return left, right

    @property
    def decoders(self) -> list[str]:
        """The heads: ``rnnt``, ``ctc``."""
        return list(self.meta["heads"])

    def encode(self, wave: Tensor, lengths: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        """(batch, samples) -> (batch, steps, dim) and the steps of each row, chunk by chunk, which gives the same."""
        return self.streamed(wave, lengths, context or self.contexts[0])


def read(meta: Mapping[str, Any], folder: Path, threads: int, providers: Sequence[str]) -> Transcriber:
    """The recogniser of an export folder that `meta` describes.

    Raises:
        InputError: a graph or the tokenizer is damaged.
    """
    return with_tokenizer(OnnxRecognizer(meta, folder, threads, providers), folder)
