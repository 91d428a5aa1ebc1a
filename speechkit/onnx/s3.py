"""Speech tokenizers whose parts are ONNX graphs: of recordings in windows, or of speech as it comes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from speechkit.codecs.s3 import HOP, S3Tokenizer, SpeechTokenizer, TokenModel, check_wave
from speechkit.onnx.read import there, weights_hash
from speechkit.streaming.onnx import Interface, OnnxGraph, OnnxStream, whole
from speechkit.streaming.stream import run

ROWS = 8  # recordings in a call of a stream
CPU = torch.device("cpu")  # of what goes in and comes out


class GraphFront(nn.Module):
    """`WhisperMel` as a graph, which needs a frame at least."""

    def __init__(self, graph: OnnxGraph, mels: int) -> None:
        super().__init__()
        self.graph, self.mels = graph, mels

    def forward(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, samples), (batch,) -> (batch, samples // 160, mels), (batch,)."""
        if wave.shape[1] < HOP:
            return torch.zeros(len(wave), 0, self.mels), torch.zeros_like(lengths)
        features, frames = self.graph(wave.float(), lengths)
        return features, frames


class GraphEncoder(nn.Module):
    """Features of a window to codes, which need no quantiser any more."""

    positions = None  # are inside

    def __init__(self, graph: OnnxGraph | None, mels: int, stride: int) -> None:
        super().__init__()
        self.graph, self.mels, self.stride = graph, mels, stride

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, frames, mels), (batch,) -> (batch, codes), (batch,)."""
        assert self.graph is not None
        codes, counts = self.graph(features, lengths)
        return codes, counts


class Quantized(nn.Module):
    """In the place of a quantiser: the graph has done it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def encode(self, codes: Tensor) -> Tensor:
        """As given."""
        return codes


class GraphTokenizer(TokenModel):
    """What all exports have in common: weights that lie in graphs."""

    weights: bytes  # the hash of those that the export was made of

    def fingerprint(self) -> bytes:
        """As `TokenModel.fingerprint`, of the release: tokens of the one are tokens of the other."""
        return self.weights

    @property
    def device(self) -> torch.device:
        """As `TokenModel.device`."""
        return CPU


class OnnxTokenizer(GraphTokenizer, S3Tokenizer):
    """A tokenizer that hears windows of 30 s."""

    def __init__(
        self, front: GraphFront, encoder: Any, quantizer: Any, windows: int, compat: str | None, weights: bytes
    ) -> None:
        super().__init__(encoder, quantizer, windows, compat)
        self.front, self.weights = front, weights


class OnnxCausalTokenizer(GraphTokenizer):
    """A tokenizer whose graph is a stream."""

    streams = True

    def __init__(self, stream: OnnxStream, encoder: Any, quantizer: Any, weights: bytes) -> None:
        super().__init__(nn.Identity(), encoder, quantizer)
        self.stream, self.weights = stream, weights

    def encode(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As `TokenModel.encode`."""
        check_wave(wave, lengths)
        rows = [row[:count, None].float() for row, count in zip(wave, lengths.tolist(), strict=True)]
        codes = [found[:, 0] for found in run(self.stream, rows, ROWS)]
        return pad_sequence(codes, batch_first=True), torch.tensor([len(row) for row in codes])

    def encoding(self, chunks: int = 1) -> Any:
        """As `TokenModel.encoding`, as many chunks a call as were exported."""
        return self.stream


def read(meta: Mapping[str, Any], folder: Path, threads: int, providers: Sequence[str]) -> SpeechTokenizer:
    """The speech tokenizer of an export folder that `meta` describes.

    Raises:
        InputError: a graph is missing or damaged.
    """
    mels, stride = whole("mels", meta["mels"], 1), whole("stride", meta["stride"], 1)
    quantizer, weights = Quantized(whole("size", meta["size"], 2)), weights_hash(meta)
    if "stream" in meta:
        file, interface = there(folder, meta["stream"]["file"]), Interface.from_dict(meta["stream"]["stream"])
        if (interface.dim, interface.stride) != (1, HOP * stride):
            raise ValueError(f"its stream must be of samples, one code for {HOP * stride}, got {interface.stride}")
        stream = OnnxStream(file, interface, threads, providers)
        return SpeechTokenizer(OnnxCausalTokenizer(stream, GraphEncoder(None, mels, stride), quantizer, weights))
    front, encoder = (
        OnnxGraph(there(folder, meta["graphs"][name]), threads, providers) for name in ("front", "encoder")
    )
    parts = GraphFront(front, mels), GraphEncoder(encoder, mels, stride), quantizer
    return SpeechTokenizer(OnnxTokenizer(*parts, whole("windows", meta["windows"], 1), meta["compat"], weights))
