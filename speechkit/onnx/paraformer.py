"""A Paraformer whose parts are ONNX graphs: what `Transcriber` needs of a model, without its weights in PyTorch."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from speechkit.asr.acoustic import check_decoder
from speechkit.asr.blocks import Grid
from speechkit.asr.decoding.boosting import PhraseBooster
from speechkit.asr.decoding.nar import NarBlocks, NarWhole, no_beam
from speechkit.asr.decoding.scoring import Scorer
from speechkit.asr.decoding.search import Search
from speechkit.asr.transcriber import Transcriber
from speechkit.onnx.exported import Exported, with_tokenizer
from speechkit.onnx.front import FrontEnd, front_of
from speechkit.onnx.read import plain
from speechkit.streaming.onnx import Interface, whole


class OnnxParaformer(Exported[Grid]):
    """A `Paraformer` as `meta.json` describes it; arguments as of `Exported`."""

    front: FrontEnd

    def __init__(self, meta: Mapping[str, Any], folder: Path, threads: int = 1, providers: Sequence[str] = ()) -> None:
        super().__init__(meta, folder, threads, providers)
        self.vocab_size = whole("vocab_size", meta["vocab_size"], 1)
        self.special = [whole("special", token, 0) for token in meta["special"]]
        self.lead_ms = float(meta["lead_ms"])
        for grid, entry in self._about.items():
            _check(grid, entry, folder)
        if not self.special or max(self.special) > self.vocab_size or not math.isfinite(self.lead_ms):
            raise ValueError(f"no model has the marks {meta['special']!r:.50} and the lead {self.lead_ms}")
        self.front = front_of(meta["front"])
        if self.front.sample_rate != self.rate:
            raise ValueError(f"its rate is {self.rate} here and {self.front.sample_rate} of the front end")

    def context(self, numbers: Sequence[int]) -> Grid:
        """A grid, or of whole utterances none."""
        if len(numbers) != len(Grid._fields):
            raise ValueError(f"a context has {len(Grid._fields)} numbers, got {numbers!r:.50}")
        return Grid(*numbers).check()

    @property
    def decoders(self) -> list[str]:
        """The one that says all tokens at once."""
        return ["nar"]

    def latency_ms(self, context: Grid) -> float:
        """Longest look-ahead of a context in milliseconds, infinite of whole utterances."""
        return math.inf if context.whole else super().latency_ms(context)

    def grouped(self, context: Grid) -> int:
        """Encoder steps in an output of `streaming`: those of a block."""
        return context.size

    def encode(self, wave: Tensor, lengths: Tensor, context: Grid | None = None) -> tuple[Tensor, Tensor]:
        """(batch, samples) -> what the context's decoder takes: packed `Blocks`, or of whole utterances features."""
        grid = self.contexts[0] if context is None else context
        if not grid.whole:
            return self.streamed(wave, lengths, grid)
        features, counts = self.front(wave, lengths)
        return features, counts

    def greedy(self, decoder: str, context: Grid, booster: PhraseBooster | None = None) -> NarWhole | NarBlocks:
        """What `encode` gives to tokens."""
        check_decoder(self, decoder)
        if not context.whole:
            return NarBlocks(self.stream(context, "scores_file", "scores"), context, self.device, self.special, booster)
        graph = self.graph(self._about[context]["file"])

        def scores(features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
            if not features.shape[1]:
                features = features.new_zeros(len(features), 1, features.shape[2])
            found, counts = graph(features, lengths)
            return found, counts

        return NarWhole(scores, self.device, self.special, booster)

    def beam(self, decoder: str, context: Grid, beam: int, scorers: Sequence[Scorer[Any]] = ()) -> Search:
        """There is none."""
        check_decoder(self, decoder)
        raise no_beam()


def _check(grid: Grid, entry: Mapping[str, Any], folder: Path) -> None:
    """Refuses what a context's graphs cannot be."""
    if grid.whole:
        return
    plain(folder, entry["scores_file"])
    stream, scores = (Interface.from_dict(entry[name]) for name in ("stream", "scores"))
    if stream.stride < grid.size or scores.dim <= grid.room or (scores.dim - 3) % grid.room:
        raise ValueError(f"its graphs are not of the grid {list(grid)}")
    if not 0 <= float(entry["latency_ms"]) < math.inf:
        raise ValueError(f"no grid looks {entry['latency_ms']} ms ahead")


def read(meta: Mapping[str, Any], folder: Path, threads: int, providers: Sequence[str]) -> Transcriber:
    """The recogniser of an export folder that `meta` describes.

    Raises:
        InputError: a graph or the tokenizer is damaged.
    """
    return with_tokenizer(OnnxParaformer(meta, folder, threads, providers), folder)
