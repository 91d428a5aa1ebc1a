"""A codec as users meet it: waves to codes and back, whole, in batches, or piece by piece."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from speechkit.codecs.codec_model import CodecModel
from speechkit.codecs.windowed import Windowed
from speechkit.errors import InputError
from speechkit.streaming.stream import Stream

CHUNKS = 8  # codes of a call of a stream


class Codes(NamedTuple):
    """Codes of a batch."""

    values: Tensor  # (batch, time) int64, or (batch, time, books) of a codec with several codebooks
    lengths: Tensor  # (batch,) codes of each row
    samples: Tensor  # (batch,) samples that each row had


class Codec:
    """Encodes and decodes.

    Args:
        model: with its weights.
    """

    def __init__(self, model: CodecModel) -> None:
        model.eval()
        self.model = model

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
        """Codes of a codebook."""
        return self.model.size

    @property
    def books(self) -> int:
        """Codebooks; decoding takes codes of the first ones alone as well."""
        return self.model.books

    @property
    def causal(self) -> bool:
        """Whether decoding a stream gives what decoding the whole gives."""
        return self.model.causal

    @property
    def encoding_latency_s(self) -> float:
        """Audio that the first sample of a code waits for, its own hop included."""
        return (self.model.encoding().lookahead + 1) / self.rate

    @torch.inference_mode()
    def encode(self, wave: Tensor, lengths: Tensor | None = None, books: int | None = None) -> Codes:
        """(samples,) or (batch, samples) at `rate`, (batch,) valid samples -> codes; each row as if it were alone.

        Args:
            books: of a codec with several codebooks, the first ones alone.

        Raises:
            InputError: the wave has another shape, or holds NaN or Inf; the codec has not so many codebooks.
        """
        self.check_books(books)
        if wave.dim() not in (1, 2):
            raise InputError(f"a wave must be (samples,) or (batch, samples), got {tuple(wave.shape)}")
        if not bool(wave.isfinite().all()):
            raise InputError("the wave contains NaN or Inf")
        wave = wave[None] if wave.dim() == 1 else wave
        samples = torch.full((len(wave),), wave.shape[1], device=wave.device) if lengths is None else lengths
        if not wave.shape[1]:
            columns = () if self.books == 1 else (books or self.books,)
            return Codes(torch.zeros(len(wave), 0, *columns, dtype=torch.int64), samples, samples)
        values, counts = self.model.encode(wave, samples)
        return Codes(values if self.books == 1 else values[..., :books], counts, samples)

    @torch.inference_mode()
    def decode(self, codes: Codes | Tensor) -> Tensor:
        """Codes, or (time,) or (batch, time) -> (batch, samples), rows cut to their lengths and zero after them.

        Of a codec with several codebooks (time, books) or (batch, time, books), the first ones or all.

        Raises:
            InputError: a code is none of this codec's, or the shape is another one.
        """
        if isinstance(codes, Tensor):
            codes = codes if codes.dim() == 2 + (self.books > 1) else codes[None]
            counts = torch.full((len(codes),), codes.shape[1], device=codes.device)
            codes = Codes(codes, counts, counts * self.hop)
        self.check(codes.values)
        if not codes.values.shape[1]:
            return torch.zeros(len(codes.values), 0)
        wave, _ = self.model.decode(codes.values, codes.lengths)
        valid = torch.arange(wave.shape[1], device=wave.device) < codes.samples[:, None]
        return (wave * valid)[:, : int(codes.samples.max())]

    def check_books(self, books: int | None) -> None:
        """Raises InputError where the codec has not so many codebooks."""
        if books is not None and not 1 <= books <= self.books:
            raise InputError(f"this codec has {self.books} codebook{'s' * (self.books > 1)}, not {books}")

    def check(self, codes: Tensor, batch: int = 1) -> None:
        """Raises InputError where a code is none of this codec's, or they have not so many dimensions of rows."""
        dims = batch + 1 + (self.books > 1)
        if codes.dim() != dims or (self.books > 1 and not 1 <= codes.shape[-1] <= self.books):
            shape = f"({'batch, ' * batch}time{f', 1 to {self.books}' if self.books > 1 else ''})"
            raise InputError(f"codes must be {shape}, got {tuple(codes.shape)}")
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.size:
            raise InputError(
                f"codes must be from 0 to {self.size - 1}, got {int(codes.min())} to {int(codes.max())}: they are of "
                "another codec, or damaged"
            )

    @torch.inference_mode()
    def encode_stream(self, pieces: Iterable[Tensor], books: int | None = None) -> Iterator[Tensor]:
        """Pieces (samples,) of any size -> pieces (codes,), which together are those of the whole.

        They are (codes, books) of a codec with several codebooks.
        """
        self.check_books(books)
        stream, columns = Stream(self.model.encoding(CHUNKS)), 0 if self.books == 1 else slice(books)
        for piece in pieces:
            yield from (found[:, columns] for found in stream.push(piece[:, None]) if len(found))
        yield from (found[:, columns] for found in stream.flush() if len(found))

    @torch.inference_mode()
    def decode_stream(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        """Pieces (codes,), or (codes, books), of any size -> pieces (samples,), a whole hop for the last code too.

        A causal codec gives what it gives for the whole; another one decodes in windows of some seconds, one fading
        into the next (`Windowed`).
        """
        if not self.causal:
            yield from Windowed(self.model).run(self._checked(pieces))
            return
        stream = Stream(self.model.decoding(CHUNKS))
        for piece in self._checked(pieces):
            columns = piece if self.books > 1 else piece[:, None]
            yield from (found.flatten() for found in stream.push(columns) if len(found))
        yield from (found.flatten() for found in stream.flush() if len(found))

    def _checked(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        for piece in pieces:
            self.check(piece, batch=0)
            yield piece
