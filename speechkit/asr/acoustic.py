"""What a transcriber needs of a model, whatever it is and whether PyTorch or ONNX Runtime computes it."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor

from speechkit.errors import InputError
from speechkit.streaming.state import Chunk, Streaming

if TYPE_CHECKING:
    from speechkit.asr.decoding.boosting import PhraseBooster
    from speechkit.asr.decoding.scoring import Scorer
    from speechkit.asr.decoding.search import Search

Context = Any  # what a model's `contexts` hold, a hashable value that only the model itself looks into
ContextT = TypeVar("ContextT")


class Greedy(Streaming[Any], Protocol):
    """A decoder that never takes anything back: encoder steps in, (token, step, log-probability) out.

    Its state has a field `steps`, (batch,) int64: encoder steps so far.
    """

    def __call__(self, encoder: Tensor, lengths: Tensor) -> Chunk:
        """(batch, steps, encoder_dim) and (batch,) -> what whole utterances emit."""
        ...


class AcousticModel(Protocol):
    """Samples to encoder steps, and those to tokens: `Recognizer`, `Paraformer`, `OnnxRecognizer`."""

    @property
    def rate(self) -> int:
        """Sampling rate in Hz."""
        ...

    @property
    def device(self) -> torch.device:
        """Where what goes in and comes out is."""
        ...

    @property
    def vocab_size(self) -> int:
        """Pieces that its tokenizer has."""
        ...

    @property
    def step_ms(self) -> float:
        """Milliseconds between encoder steps."""
        ...

    @property
    def lead_ms(self) -> float:
        """How much earlier than the step that gives it a token begins, on the whole."""
        ...

    @property
    def contexts(self) -> list[Context]:
        """The contexts that can be chosen, first the one that is used where none is."""
        ...

    @property
    def decoders(self) -> list[str]:
        """What turns steps into tokens: ``rnnt``, ``ctc``, ``nar``; first the one that is used where none is named."""
        ...

    def latency_ms(self, context: Context) -> float:
        """Longest look-ahead of a context in milliseconds; infinite where it has no limit."""
        ...

    def context_at(self, latency_ms: float) -> Context:
        """The context of the longest look-ahead that is not over `latency_ms`."""
        ...

    def streams(self, context: Context) -> bool:
        """Whether the model can run chunk by chunk at a context."""
        ...

    def grouped(self, context: Context) -> int:
        """Encoder steps in an output of `streaming`."""
        ...

    def streaming(self, context: Context, chunks: int = 1) -> Streaming[Any]:
        """Samples (batch, time, 1) to what the context's decoders take, chunk by chunk."""
        ...

    def encode(self, wave: Tensor, lengths: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        """(batch, samples) -> (batch, steps, dim) that the context's decoders take, and the steps of each row."""
        ...

    def greedy(self, decoder: str, context: Context, booster: "PhraseBooster | None" = None) -> Greedy:
        """The greedy decoder of that name for what a context gives."""
        ...

    def beam(self, decoder: str, context: Context, beam: int, scorers: "Sequence[Scorer[Any]]" = ()) -> "Search":
        """The beam search of that name for what a context gives."""
        ...

    def eval(self) -> Any:
        """Switches to inference."""
        ...


def context_within(latency_ms: float, offers: Mapping[float, ContextT]) -> ContextT:
    """The context of the longest look-ahead, in milliseconds, that is not over `latency_ms`; without end is none.

    Raises:
        InputError: there is none.
    """
    known = sorted(latency for latency in offers if latency < math.inf)
    fitting = [latency for latency in known if latency <= latency_ms]
    if not fitting:
        shown = ", ".join(f"{latency:g}" for latency in known) or "none (full context)"
        raise InputError(f"no context of this model has a look-ahead of at most {latency_ms:g} ms; it has {shown}")
    return offers[max(fitting)]


def no_decoder(model: Any, decoder: str) -> InputError:
    """What to raise where a model lacks a decoder."""
    return InputError(f"this model has the decoders {', '.join(model.decoders)}, got {decoder!r}")


def check_decoder(model: Any, decoder: str) -> None:
    """Refuses the name of a decoder that a model lacks.

    Raises:
        InputError: it does.
    """
    if decoder not in model.decoders:
        raise no_decoder(model, decoder)
