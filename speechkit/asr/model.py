"""A recogniser: front end, encoder and the heads it was built with."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from speechkit.asr.acoustic import context_within
from speechkit.asr.conformer import ConformerEncoder, Context
from speechkit.asr.ctc import CtcHead, ctc_loss
from speechkit.asr.decoding.search import Heads
from speechkit.asr.joiner import Joiner
from speechkit.asr.nemo_stream import NemoStream
from speechkit.asr.predictor import Predictor
from speechkit.asr.transducer import transducer_loss
from speechkit.features import LogMel
from speechkit.streaming.chain import Chain


class Losses(NamedTuple):
    """Each utterance's losses; zero for a head that is missing."""

    ctc: Tensor  # (batch,)
    transducer: Tensor  # (batch,)


class Recognizer(Heads, nn.Module):
    """Samples to encoder steps, with a CTC head, a transducer (predictor and joiner), or both."""

    def __init__(
        self,
        front: LogMel,
        encoder: ConformerEncoder,
        ctc: CtcHead | None = None,
        predictor: Predictor | None = None,
        joiner: Joiner | None = None,
    ) -> None:
        super().__init__()
        if (predictor is None) != (joiner is None):
            raise ValueError("a transducer needs both a predictor and a joiner")
        blanks = [head.blank for head in (ctc, predictor) if head is not None]
        if not blanks:
            raise ValueError("a recogniser needs a CTC head, a transducer, or both")
        self.front, self.encoder = front, encoder
        self.ctc, self.predictor, self.joiner = ctc, predictor, joiner
        self.blank = blanks[0]  # the blank's index, which is the vocabulary's size
        self.compat: str | None = None  # "reference": streams run NeMo's arithmetic, inexact where R = 0
        for what, one, other in self._joints():
            if one != other:
                raise ValueError(f"the parts of a recogniser must fit, but {what} is {one} here and {other} there")

    def _joints(self) -> Iterator[tuple[str, int, int]]:
        """The sizes that two parts have in common, as each of them has it."""
        width = self.encoder.dim
        yield "the number of mel bands (front end, encoder)", self.front.n_mels, self.encoder.subsampling.n_mels
        if self.ctc is not None:
            yield "the width (encoder, CTC head)", width, self.ctc.out.in_features
        if self.predictor is not None and self.joiner is not None:
            yield "the width (encoder, joiner)", width, self.joiner.encoder.in_features
            yield "the width (predictor, joiner)", self.predictor.dim, self.joiner.predictor.in_features
            yield "the vocabulary (predictor, joiner)", self.predictor.blank, self.joiner.out.out_features - 1
            yield "the vocabulary (first head, predictor)", self.blank, self.predictor.blank

    @property
    def contexts(self) -> list[Context]:
        """The attention contexts that the encoder was trained with."""
        return self.encoder.contexts

    @property
    def rate(self) -> int:
        """Sampling rate in Hz."""
        return self.front.sample_rate

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.front.window.device

    @property
    def step_ms(self) -> float:
        """Milliseconds between encoder steps."""
        return 1000 * self.front.hop * self.encoder.stride / self.front.sample_rate

    @property
    def decoders(self) -> list[str]:
        """The heads: ``rnnt``, ``ctc``."""
        return [name for name, head in (("rnnt", self.joiner), ("ctc", self.ctc)) if head is not None]

    def latency_ms(self, context: Context) -> float:
        """Longest look-ahead of a context in milliseconds: right steps, over all layers where they add up."""
        if context[1] < 0:
            return math.inf
        reach = len(self.encoder.layers) if self.encoder.style == "regular" else 1
        return context[1] * self.step_ms * reach

    def context_at(self, latency_ms: float) -> Context:
        """As `context_within` the contexts that the model was trained with."""
        return context_within(latency_ms, {self.latency_ms(c): c for c in self.contexts})

    def streams(self, context: Context) -> bool:
        """Whether the model can run chunk by chunk at a context."""
        return min(context) >= 0 and self.encoder.causal and self.front.normalize is None

    def encode(self, wave: Tensor, lengths: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        """(batch, samples) -> (batch, steps, dim) and the steps of each row, under the masks of a context."""
        features, feature_lengths = self.front(wave, lengths)
        return self.encoder(features, feature_lengths, context)

    def streaming(self, context: Context, chunks: int = 1) -> Chain:
        """Samples (batch, time, 1) to encoder steps, chunk by chunk; equal to `encode` under the same context.

        Takes `chunks` attention chunks a call; of several, no other arithmetic than our own is known.
        """
        if self.compat == "reference" and chunks == 1:
            return Chain(self.front, NemoStream(self.encoder, context))
        return Chain(self.front, self.encoder.at(context, chunks))

    def losses(
        self,
        encoder: Tensor,
        lengths: Tensor,
        targets: Tensor,
        target_lengths: Tensor,
        fastemit: float = 0.0,
        heads: Sequence[str] | None = None,
    ) -> Losses:
        """Losses of encoder steps (batch, steps, dim) against targets (batch, tokens); 0 of heads that are left out."""
        heads = self.decoders if heads is None else heads
        zero = encoder.new_zeros(len(encoder), dtype=torch.float)
        ctc = transducer = zero
        if self.ctc is not None and "ctc" in heads:
            ctc = ctc_loss(self.ctc(encoder), targets, lengths, target_lengths, self.blank)
        if self.predictor is not None and self.joiner is not None and "rnnt" in heads:
            predictor = self.predictor(targets)
            transducer = transducer_loss(self.joiner, encoder, predictor, targets, lengths, target_lengths, fastemit)
        return Losses(ctc, transducer)
