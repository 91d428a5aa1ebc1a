"""What every exported recogniser is: graphs in a folder, the contexts that `meta.json` describes, and their streams."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from speechkit.asr.acoustic import AcousticModel, context_within
from speechkit.asr.transcriber import Transcriber
from speechkit.errors import InputError
from speechkit.onnx.read import plain
from speechkit.streaming.chain import Chain
from speechkit.streaming.onnx import Interface, OnnxGraph, OnnxStream, whole
from speechkit.streaming.state import Streaming
from speechkit.streaming.stream import run
from speechkit.tokenizers import load_tokenizer

ContextT = TypeVar("ContextT")
ROWS = 16  # streams in a call where many recordings are given at once


def positive(what: str, value: Any) -> float:
    """The number, over 0 and finite; `ValueError` where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:  # also NaN
        raise ValueError(f"{what} must be over 0, got {value!r:.50}")
    return float(value)


class Exported(nn.Module, Generic[ContextT], ABC):
    """What `meta.json` describes; a graph is opened when it is needed first.

    Args:
        meta: its content.
        folder: where the graphs lie.
        threads: of ONNX Runtime for each graph.
        providers: ONNX Runtime's execution providers; the CPU's where none is named.

    Raises:
        ValueError: the description is damaged.
        InputError: a file that it names is not there.
    """

    device = torch.device("cpu")  # of what goes in and comes out
    front: Any  # the module that stands before graphs that take features; None of others

    def __init__(self, meta: Mapping[str, Any], folder: Path, threads: int = 1, providers: Sequence[str] = ()) -> None:
        super().__init__()
        self.meta, self.folder, self._options = meta, folder, (threads, tuple(providers))
        self.rate, self.step_ms = whole("rate", meta["rate"], 1), positive("step_ms", meta["step_ms"])
        self.takes = meta["takes"]
        self._about = {self.context(entry["context"]): entry for entry in meta["contexts"]}
        if not self._about or self.takes not in ("samples", "features"):
            raise ValueError("it has no context, or takes neither samples nor features")
        for entry in self._about.values():
            plain(folder, entry["file"])
        self._streams: dict[str, OnnxStream] = {}
        self._graphs: dict[str, OnnxGraph] = {}

    @abstractmethod
    def context(self, numbers: Sequence[int]) -> ContextT:
        """The context that these numbers describe; `ValueError` where they do not."""

    @property
    def contexts(self) -> list[ContextT]:
        """Those that were exported."""
        return list(self._about)

    def latency_ms(self, context: ContextT) -> float:
        """Longest look-ahead of a context in milliseconds."""
        return float(self._about[context]["latency_ms"])

    def context_at(self, latency_ms: float) -> ContextT:
        """As `context_within` the exported contexts."""
        return context_within(latency_ms, {self.latency_ms(context): context for context in self.contexts})

    def streams(self, context: ContextT) -> bool:
        """Whether the context was exported for streams."""
        return context in self._about and self.latency_ms(context) < math.inf

    def streaming(self, context: ContextT, chunks: int = 1) -> Streaming[Any]:
        """Samples (batch, time, 1) to what decoders take, a chunk a call whatever `chunks` says."""
        stream = self.stream(context)
        return stream if self.takes == "samples" else Chain(self.front, stream)

    def stream(self, context: ContextT, file: str = "file", interface: str = "stream") -> OnnxStream:
        """A graph of a context; its encoder takes what the export takes: samples or features."""
        entry = self._about[context]
        name = entry[file]
        if name not in self._streams:
            path = plain(self.folder, name)
            self._streams[name] = OnnxStream(path, Interface.from_dict(entry[interface]), *self._options)
        return self._streams[name]

    def graph(self, name: str) -> OnnxGraph:
        """A graph without state."""
        if name not in self._graphs:
            self._graphs[name] = OnnxGraph(plain(self.folder, name), *self._options)
        return self._graphs[name]

    def streamed(self, wave: Tensor, lengths: Tensor, context: ContextT) -> tuple[Tensor, Tensor]:
        """(batch, samples) -> (batch, outputs, dim) of `streaming`, and how many of each row."""
        rows = [row[:count, None] for row, count in zip(wave, lengths.tolist(), strict=True)]
        found = run(self.streaming(context), rows, ROWS)
        return nn.utils.rnn.pad_sequence(found, batch_first=True), torch.tensor([len(row) for row in found])


def with_tokenizer(model: AcousticModel, folder: Path) -> Transcriber:
    """A model with the tokenizer that lies in its export; `InputError` where they do not belong together."""
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab_size != model.vocab_size:
        raise InputError(
            f"the tokenizer of {folder} has {tokenizer.vocab_size} pieces, but its model gives {model.vocab_size}"
        )
    return Transcriber(model, tokenizer)
