"""What a codec needs of a model, whether PyTorch or ONNX Runtime computes it."""

from typing import Any, Protocol

import torch
from torch import Tensor

from speechkit.streaming.state import Streaming


class CodecModel(Protocol):
    """Samples to codes and back: `WavTokenizer`, `OnnxCodec`."""

    rate: int  # of the samples, Hz
    hop: int  # samples of a code

    @property
    def size(self) -> int:
        """Codes of a codebook."""
        ...

    @property
    def codebooks(self) -> int:
        """Codebooks."""
        ...

    @property
    def causal(self) -> bool:
        """Whether decoding can stream."""
        ...

    @property
    def codes_per_second(self) -> float:
        """Of one codebook."""
        ...

    @property
    def device(self) -> torch.device:
        """Where what goes in and comes out is."""
        ...

    def fingerprint(self) -> bytes:
        """The hash of the weights that token files name, 16 bytes; an export has that of its model."""
        ...

    def encode(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, samples), (batch,) -> codes (batch, time) or (batch, time, codebooks), (batch,)."""
        ...

    def decode(self, codes: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Codes, of the first codebooks alone or of all, (batch,) -> (batch, codes * hop), (batch,) samples."""
        ...

    def encoding(self, chunks: int = 1) -> Streaming[Any]:
        """Streams samples (batch, time, 1) to codes (batch, codes, codebooks)."""
        ...

    def decoding(self, chunks: int = 1) -> Streaming[Any]:
        """Streams codes (batch, time, codebooks or fewer) to samples (batch, time, hop); InputError if not causal."""
        ...

    def eval(self) -> Any:
        """Switches to inference."""
        ...
