"""A Paraformer whose parts are ONNX graphs: what `Transcriber` needs of a model, without its weights in PyTorch."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from speechkit.asr.acoustic import check_decoder, context_within
from speechkit.asr.blocks import Grid
from speechkit.asr.decoding.boosting import PhraseBooster
from speechkit.asr.decoding.nar import NarBlocks, NarWhole, no_beam
from speechkit.asr.decoding.scoring import Scorer
from speechkit.asr.decoding.search import Search
from speechkit.asr.transcriber import Transcriber
from speechkit.fbank import KaldiFbank
from speechkit.low_frame_rate import LowFrameRate, LowFrameRateFbank
from speechkit.onnx.read import plain
from speechkit.onnx.recognizer import ROWS, with_tokenizer
from speechkit.streaming.chain import Chain
from speechkit.streaming.onnx import Interface, OnnxGraph, OnnxStream, whole
from speechkit.streaming.state import Streaming
from speechkit.streaming.stream import run

CPU = torch.device("cpu")


class OnnxParaformer(nn.Module):
    """What `meta.json` describes; arguments as of `OnnxRecognizer`."""

    device = CPU  # of what goes in and comes out

    def __init__(self, meta: Mapping[str, Any], folder: Path, threads: int = 1, providers: Sequence[str] = ()) -> None:
        super().__init__()
        self.meta, self.folder, self._options = meta, folder, (threads, tuple(providers))
        self.rate, self.vocab_size = whole("rate", meta["rate"], 1), whole("vocab_size", meta["vocab_size"], 1)
        self.special = [whole("special", token, 0) for token in meta["special"]]
        self.step_ms, self.lead_ms = float(meta["step_ms"]), float(meta["lead_ms"])
        self._about = {_grid(entry["context"]): entry for entry in meta["contexts"]}
        for grid, entry in self._about.items():
            _check(grid, entry, folder)
        if not self.special or max(self.special) > self.vocab_size or not math.isfinite(self.lead_ms):
            raise ValueError(f"no model has the marks {meta['special']!r:.50} and the lead {self.lead_ms}")
        if not self._about or meta["takes"] not in ("samples", "features") or not 0 < self.step_ms < math.inf:
            raise ValueError("it has no context, or takes neither samples nor features")
        self._streams: dict[str, OnnxStream] = {}
        self._graphs: dict[str, OnnxGraph] = {}
        self.front = _front(meta["front"]).eval()
        if self.front.sample_rate != self.rate:
            raise ValueError(f"its rate is {self.rate} here and {self.front.sample_rate} of the front end")

    @property
    def contexts(self) -> list[Grid]:
        """The contexts that were exported."""
        return list(self._about)

    @property
    def decoders(self) -> list[str]:
        """The one that says all tokens at once."""
        return ["nar"]

    def latency_ms(self, context: Grid) -> float:
        """Longest look-ahead of a context in milliseconds, infinite of whole utterances."""
        return math.inf if context.whole else float(self._about[context]["latency_ms"])

    def context_at(self, latency_ms: float) -> Grid:
        """As `context_within` the exported grids."""
        return context_within(latency_ms, {self.latency_ms(grid): grid for grid in self.contexts})

    def streams(self, context: Grid) -> bool:
        """Whether it is a grid that was exported."""
        return context in self._about and not context.whole

    def grouped(self, context: Grid) -> int:
        """Encoder steps in an output of `streaming`: those of a block."""
        return context.size

    def streaming(self, context: Grid, chunks: int = 1) -> Streaming[Any]:
        """Samples (batch, time, 1) to packed `Blocks`, one a call, whatever `chunks` is."""
        stream = self._stream(context, "file", "stream")
        return stream if self.meta["takes"] == "samples" else Chain(self.front, stream)

    def _stream(self, context: Grid, file: str, interface: str) -> OnnxStream:
        entry = self._about[context]
        name = entry[file]
        if name not in self._streams:
            path = plain(self.folder, name)
            self._streams[name] = OnnxStream(path, Interface.from_dict(entry[interface]), *self._options)
        return self._streams[name]

    def _whole(self, context: Grid) -> OnnxGraph:
        name = self._about[context]["file"]
        if name not in self._graphs:
            self._graphs[name] = OnnxGraph(plain(self.folder, name), *self._options)
        return self._graphs[name]

    def encode(self, wave: Tensor, lengths: Tensor, context: Grid | None = None) -> tuple[Tensor, Tensor]:
        """(batch, samples) -> what the context's decoder takes: packed `Blocks`, or of whole utterances features."""
        grid = self.contexts[0] if context is None else context
        if grid.whole:
            features, counts = self.front(wave, lengths)
            return features, counts
        rows = [row[:count, None] for row, count in zip(wave, lengths.tolist(), strict=True)]
        blocks = run(self.streaming(grid), rows, ROWS)
        return nn.utils.rnn.pad_sequence(blocks, batch_first=True), torch.tensor([len(row) for row in blocks])

    def greedy(self, decoder: str, context: Grid, booster: PhraseBooster | None = None) -> NarWhole | NarBlocks:
        """What `encode` gives to tokens."""
        check_decoder(self, decoder)
        if not context.whole:
            return NarBlocks(self._stream(context, "scores_file", "scores"), context, CPU, self.special, booster)
        graph = self._whole(context)

        def scores(features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
            if not features.shape[1]:
                features = features.new_zeros(len(features), 1, features.shape[2])
            found, counts = graph(features, lengths)
            return found, counts

        return NarWhole(scores, CPU, self.special, booster)

    def beam(self, decoder: str, context: Grid, beam: int, scorers: Sequence[Scorer[Any]] = ()) -> Search:
        """There is none."""
        check_decoder(self, decoder)
        raise no_beam()


def _grid(numbers: Sequence[int]) -> Grid:
    if len(numbers) != len(Grid._fields):
        raise ValueError(f"a context has {len(Grid._fields)} numbers, got {numbers!r:.50}")
    return Grid(*numbers).check()


def _check(grid: Grid, entry: Mapping[str, Any], folder: Path) -> None:
    """Refuses what a context's graphs cannot be."""
    plain(folder, entry["file"])
    if grid.whole:
        return
    plain(folder, entry["scores_file"])
    stream, scores = (Interface.from_dict(entry[name]) for name in ("stream", "scores"))
    if stream.stride < grid.size or scores.dim <= grid.room or (scores.dim - 3) % grid.room:
        raise ValueError(f"its graphs are not of the grid {list(grid)}")
    if not 0 <= float(entry["latency_ms"]) < math.inf:
        raise ValueError(f"no grid looks {entry['latency_ms']} ms ahead")


def _front(meta: Mapping[str, Any]) -> LowFrameRateFbank:
    """The front end that `front_meta` described."""
    front = LowFrameRateFbank(KaldiFbank(**meta["fbank"]), LowFrameRate(**meta["joined"]))
    for name in ("shift", "scale"):
        values = torch.tensor(meta[name], dtype=torch.float32)
        if values.shape != (front.out,):
            raise ValueError(f"the front end's {name} has {tuple(values.shape)} numbers, not {front.out}")
        front.joined.get_buffer(name).copy_(values)
    return front


def read(meta: Mapping[str, Any], folder: Path, threads: int, providers: Sequence[str]) -> Transcriber:
    """The recogniser of an export folder that `meta` describes.

    Raises:
        InputError: a graph or the tokenizer is damaged.
    """
    return with_tokenizer(OnnxParaformer(meta, folder, threads, providers), folder)
