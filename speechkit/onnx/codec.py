"""A codec whose parts are ONNX graphs: what `Codec` needs of a model, without its weights in PyTorch."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from speechkit.codecs.codec import Codec
from speechkit.errors import InputError
from speechkit.onnx.read import there, weights_hash
from speechkit.streaming.onnx import Interface, OnnxGraph, OnnxStream, whole
from speechkit.streaming.state import Chunk

ABSENT = -1  # in the place of a code of a codebook that is left out


class CodeStream(OnnxStream):
    """A stream of codes, of all codebooks or the first ones."""

    def step(self, x: Chunk, state: Any) -> tuple[Chunk, Any]:
        """(batch, time, codebooks or fewer) -> (batch, time, hop)."""
        return super().step(x._replace(values=completed(x.values, self.interface.dim)), state)


def completed(codes: Tensor, codebooks: int) -> Tensor:
    """(batch, time, codebooks or fewer) -> (batch, time, codebooks)."""
    return nn.functional.pad(codes, (0, codebooks - codes.shape[-1]), value=ABSENT)


class OnnxCodec(nn.Module):
    """What `meta.json` describes; graphs are opened when they are first needed.

    Args:
        meta: its content.
        folder: where the graphs lie.
        threads: of ONNX Runtime for each graph.
        providers: ONNX Runtime's execution providers; the CPU's where none is named.
    """

    device = torch.device("cpu")  # of what goes in and comes out

    def __init__(self, meta: Mapping[str, Any], folder: Path, threads: int = 1, providers: Sequence[str] = ()) -> None:
        super().__init__()
        self.folder, self._options = folder, (threads, tuple(providers))
        self.rate, self.hop = whole("rate", meta["rate"], 1), whole("hop", meta["hop"], 1)
        self.size, self.codebooks = whole("size", meta["size"], 2), whole("codebooks", meta["codebooks"], 1)
        self.causal = "decoder" in meta["streams"]
        self._weights = weights_hash(meta)
        self._files = {name: there(folder, meta["graphs"][name]) for name in ("encoder", "decoder")}
        self._streams = {
            name: (there(folder, about["file"]), Interface.from_dict(about["stream"]))
            for name, about in meta["streams"].items()
        }
        dims = {name: (stream.dim, stream.stride) for name, (_, stream) in self._streams.items()}
        if dims != {"encoder": (1, self.hop)} | ({"decoder": (self.codebooks, 1)} if self.causal else {}):
            raise ValueError(f"its streams must be of its samples and codes, got {dims!r:.100}")

    @property
    def codes_per_second(self) -> float:
        """Of one codebook."""
        return self.rate / self.hop

    def fingerprint(self) -> bytes:
        """The hash of the weights that the export was made of: tokens of the one are tokens of the other."""
        return self._weights

    @cached_property
    def _encoder(self) -> OnnxGraph:
        return OnnxGraph(self._files["encoder"], *self._options)

    @cached_property
    def _decoder(self) -> OnnxGraph:
        return OnnxGraph(self._files["decoder"], *self._options)

    @cached_property
    def _encoding(self) -> OnnxStream:
        return OnnxStream(*self._streams["encoder"], *self._options)

    @cached_property
    def _decoding(self) -> OnnxStream:
        return CodeStream(*self._streams["decoder"], *self._options)

    def encode(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, samples), (batch,) -> codes (batch, time) or (batch, time, codebooks), (batch,)."""
        codes, counts = self._encoder(wave.float(), lengths)
        return codes if self.codebooks > 1 else codes[..., 0], counts

    def decode(self, codes: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Codes, of the first codebooks alone or of all, (batch,) -> (batch, codes * hop), (batch,) samples."""
        columns = completed(codes if self.codebooks > 1 else codes[..., None], self.codebooks)
        wave, samples = self._decoder(columns, lengths)
        return wave, samples

    def encoding(self, chunks: int = 1) -> OnnxStream:
        """Streams samples (batch, time, 1) to codes (batch, codes, codebooks), as many a call as were exported."""
        return self._encoding

    def decoding(self, chunks: int = 1) -> OnnxStream:
        """Streams codes (batch, time, codebooks or fewer) to samples (batch, time, hop), as many a call as exported.

        Raises:
            InputError: the codec is not causal.
        """
        if not self.causal:
            raise InputError("this decoder hears all latents at once: it decodes in windows, or whole")
        return self._decoding


def read(meta: Mapping[str, Any], folder: Path, threads: int, providers: Sequence[str]) -> Codec:
    """The codec of an export folder that `meta` describes.

    Raises:
        InputError: a graph is missing.
    """
    return Codec(OnnxCodec(meta, folder, threads, providers))
