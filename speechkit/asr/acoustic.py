"""What a transcriber needs of a model, whether PyTorch or ONNX Runtime computes it."""

from typing import Any, Protocol

import torch
from torch import Tensor

from speechkit.asr.conformer import Context
from speechkit.streaming.state import Streaming


class AcousticModel(Protocol):
    """Samples to encoder steps, and the heads that turn those into tokens: `Recognizer`, `OnnxRecognizer`."""

    blank: int  # the blank's index, which is the vocabulary's size
    ctc: Any  # `CtcHead` or its like, None where there is none
    predictor: Any
    joiner: Any

    @property
    def rate(self) -> int:
        """Sampling rate in Hz."""
        ...

    @property
    def device(self) -> torch.device:
        """Where what goes in and comes out is."""
        ...

    @property
    def step_ms(self) -> float:
        """Milliseconds between encoder steps."""
        ...

    @property
    def contexts(self) -> list[Context]:
        """The attention contexts that can be chosen."""
        ...

    @property
    def decoders(self) -> list[str]:
        """The heads: ``rnnt``, ``ctc``."""
        ...

    def latency_ms(self, context: Context) -> float:
        """Longest look-ahead of a context in milliseconds."""
        ...

    def context_at(self, latency_ms: float) -> Context:
        """The context of the longest look-ahead that is not over `latency_ms`."""
        ...

    def streams(self, context: Context) -> bool:
        """Whether the model can run chunk by chunk at a context."""
        ...

    def streaming(self, context: Context, chunks: int = 1) -> Streaming[Any]:
        """Samples (batch, time, 1) to encoder steps (batch, steps, dim), chunk by chunk."""
        ...

    def encode(self, wave: Tensor, lengths: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        """(batch, samples) -> (batch, steps, dim) and the steps of each row."""
        ...

    def eval(self) -> Any:
        """Switches to inference."""
        ...
