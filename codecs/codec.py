"""A codec as users meet it: waves to codes and back, whole, in batches, or piece by piece."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from speechkit.codecs.wavtokenizer import WavTokenizer
from speechkit.codecs.windowed import Windowed
from speechkit.errors import InputError
from speechkit.streaming.stream import Stream

CHUNKS = 8  # codes of a call of a stream


class Codes(NamedTuple):
    """Codes of a batch."""

    values: Tensor  # (batch, time) int64
    lengths: Tensor  # (batch,) codes of each row
    samples: Tensor  # (batch,) samples that each row had


class Codec:
    """Encodes and decodes.

    Args:
        model: with its weights.
    """

    def __init__(self, model: WavTokenizer) -> None:
        self.model = model.eval()

    @property
    def rate(self) -> int:
        """Of waves, Hz."""
        return self.model.rate

    @property
    def hop(self) -> int:
        """Samples of a code."""
        return self.model.hop

    @property
    def size(self) -> int:
        """Codes that there are."""
        return self.model.size

    @property
    def causal(self) -> bool:
        """Whether decoding a stream gives what decoding the whole gives."""
        return self.model.decoder.causal

    @property
    def encoding_latency_s(self) -> float:
        """Audio that the first sample of a code waits for, its own hop included."""
        return (self.model.encoding().lookahead + 1) / self.rate

    @torch.inference_mode()
    def encode(self, wave: Tensor, lengths: Tensor | None = None) -> Codes:
        """(samples,) or (batch, samples) at `rate`, (batch,) valid samples -> codes; each row as if it were alone.

        Raises:
            InputError: the wave has another shape, or holds NaN or Inf.
        """
        if wave.dim() not in (1, 2):
            raise InputError(f"a wave must be (samples,) or (batch, samples), got {tuple(wave.shape)}")
        if not bool(wave.isfinite().all()):
            raise InputError("the wave contains NaN or Inf")
        wave = wave[None] if wave.dim() == 1 else wave
        samples = torch.full((len(wave),), wave.shape[1]) if lengths is None else lengths
        if not wave.shape[1]:
            return Codes(torch.zeros(len(wave), 0, dtype=torch.int64), samples, samples)
        values, counts = self.model.encode(wave, samples)
        return Codes(values, counts, samples)

    @torch.inference_mode()
    def decode(self, codes: Codes | Tensor) -> Tensor:
        """Codes, or (time,) or (batch, time) -> (batch, samples), rows cut to their lengths and zero after them.

        Raises:
            InputError: a code is none of this codec's.
        """
        if isinstance(codes, Tensor):
            codes = codes[None] if codes.dim() == 1 else codes
            counts = torch.full((len(codes),), codes.shape[1])
            codes = Codes(codes, counts, counts * self.hop)
        self.check(codes.values)
        if not codes.values.shape[1]:
            return torch.zeros(len(codes.values), 0)
        wave, _ = self.model.decode(codes.values, codes.lengths)
        valid = torch.arange(wave.shape[1]) < codes.samples[:, None]
        return (wave * valid)[:, : int(codes.samples.max())]

    def check(self, codes: Tensor) -> None:
        """Raises InputError where a code is none of this codec's."""
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.size:
            raise InputError(
                f"codes must be from 0 to {self.size - 1}, got {int(codes.min())} to {int(codes.max())}: they are of "
                "another codec, or damaged"
            )

    @torch.inference_mode()
    def encode_stream(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        """Pieces (samples,) of any size -> pieces (codes,), which together are those of the whole."""
        stream = Stream(self.model.encoding(CHUNKS))
        for piece in pieces:
            yield from (found[:, 0] for found in stream.push(piece[:, None]) if len(found))
        yield from (found[:, 0] for found in stream.flush() if len(found))

    @torch.inference_mode()
    def decode_stream(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        """Pieces (codes,) of any size -> pieces (samples,), a whole hop for the last code too.

        A causal codec gives what it gives for the whole; another one decodes in windows of some seconds, one fading
        into the next (`Windowed`).
        """
        if not self.causal:
            yield from Windowed(self.model).run(self._checked(pieces))
            return
        stream = Stream(self.model.decoding(CHUNKS))
        for piece in self._checked(pieces):
            yield from (found.flatten() for found in stream.push(piece[:, None]) if len(found))
        yield from (found.flatten() for found in stream.flush() if len(found))

    def _checked(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        for piece in pieces:
            self.check(piece)
            yield piece
