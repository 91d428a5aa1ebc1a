"""A codec as users meet it: waves to codes and back, whole, in batches, or piece by piece."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speechkit.codecs.codec_model import CodecModel
from speechkit.codecs.wave import check_lengths, checked
from speechkit.codecs.windowed import Windowed
from speechkit.errors import InputError
from speechkit.streaming.stream import Stream, run

CHUNKS = 8  # codes of a call of a stream
WHOLE_S = 30.0  # longer recordings go through in pieces
WHOLE_CHUNKS = 150  # codes of a call then, when nobody waits for the first of them


class Codes(NamedTuple):
    """Codes of a batch."""

    values: Tensor  # (batch, time) int64, or (batch, time, codebooks) of a codec with several codebooks
    lengths: Tensor  # (batch,) codes of each row
    samples: Tensor  # (batch,) samples that each row had


class Codec:
    """Encodes and decodes.

    Args:
        model: with its weights.
        chunks: codes of a call of a stream: fewer are known sooner, and cost more. An export has a number of its own.
    """

    def __init__(self, model: CodecModel, chunks: int = CHUNKS) -> None:
        if chunks < 1:
            raise InputError(f"a call must take at least one code, got {chunks}")
        model.eval()
        self.model, self.chunks = model, chunks

    def in_large_calls(self) -> "Codec":
        """The same codec for streams that nobody waits for: cheaper, and later."""
        return Codec(self.model, WHOLE_CHUNKS)

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
    def codebooks(self) -> int:
        """Codebooks; decoding takes codes of the first ones alone as well."""
        return self.model.codebooks

    @property
    def causal(self) -> bool:
        """Whether decoding a stream gives what decoding the whole gives."""
        return self.model.causal

    @property
    def codes_per_call(self) -> int:
        """Of a stream."""
        return self.model.encoding(self.chunks).chunk // self.hop

    @property
    def encoding_latency_s(self) -> float:
        """Audio that the first sample of a call's codes waits for, those codes' own included."""
        stream = self.model.encoding(self.chunks)
        needed = stream.lookahead + 1  # by the last of them, which calls of this grid may end a little after
        late = (stream.first - needed) % stream.stride
        return (stream.chunk - stream.stride + needed + late) / self.rate

    @property
    def decoding_latency_s(self) -> float:
        """Sound of the codes after its own that the first one of a call, or of a window, waits for."""
        if not self.causal:
            return Windowed(self.model).size / self.model.codes_per_second
        stream = self.model.decoding(self.chunks)
        return (stream.chunk - stream.stride + stream.lookahead) / self.model.codes_per_second

    @torch.inference_mode()
    def encode(self, wave: Tensor, lengths: Tensor | None = None, codebooks: int | None = None) -> Codes:
        """(samples,) or (batch, samples) at `rate`, (batch,) valid samples -> codes; each row as if it were alone.

        Samples are float, or int16 of full scale. Beyond 30 s they go through in pieces: memory is bounded.

        Args:
            codebooks: of a codec with several codebooks, the first ones alone.

        Raises:
            InputError: the wave has another shape, or holds NaN, Inf or other numbers; a length is none of a row; the
                codec has not so many codebooks.
        """
        self.check_codebooks(codebooks)
        wave = checked(wave, (1, 2))
        wave = wave[None] if wave.dim() == 1 else wave
        lengths = torch.full((len(wave),), wave.shape[1]) if lengths is None else lengths
        check_lengths(lengths, wave)
        wave, samples = wave.to(self.model.device), lengths.to(self.model.device)
        if not wave.numel():
            columns = () if self.codebooks == 1 else (codebooks or self.codebooks,)
            return Codes(torch.zeros(len(wave), 0, *columns, dtype=torch.int64, device=wave.device), samples, samples)
        long = wave.shape[1] > WHOLE_S * self.rate
        values, counts = self._encode_pieces(wave, samples) if long else self.model.encode(wave, samples)
        return Codes(values if self.codebooks == 1 else values[..., :codebooks], counts, samples)

    def _encode_pieces(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As `CodecModel.encode`."""
        rows = [row[:count, None] for row, count in zip(wave, lengths.tolist(), strict=True)]
        found = run(self.model.encoding(WHOLE_CHUNKS), rows, batch=1)
        counts = torch.tensor([len(row) for row in found], device=wave.device)
        return pad_sequence([row if self.codebooks > 1 else row[:, 0] for row in found], batch_first=True), counts

    @torch.inference_mode()
    def decode(self, codes: Codes | Tensor) -> Tensor:
        """Codes, or (time,) or (batch, time) -> (batch, samples), rows cut to their lengths and zero after them.

        Of a codec with several codebooks (time, codebooks) or (batch, time, codebooks), the first ones or all. Beyond
        30 s memory is bounded, as in a stream: a codec that is not causal then decodes in windows (`Windowed`).

        Raises:
            InputError: a code is none of this codec's, or the shape is another one.
        """
        if isinstance(codes, Tensor):
            codes = codes if codes.dim() == 2 + (self.codebooks > 1) else codes[None]
            counts = torch.full((len(codes),), codes.shape[1], device=codes.device)
            codes = Codes(codes, counts, counts * self.hop)
        self.check(codes.values)
        self._check_lengths(codes)
        codes = Codes(*(part.to(self.model.device) for part in codes))
        if not codes.values.numel():
            return torch.zeros(len(codes.values), 0, device=codes.values.device)
        if self._long(codes.values.shape[1]):
            rows = zip(codes.values, codes.lengths.clamp(min=1).tolist(), strict=True)  # samples of none are cut below
            wave = pad_sequence([self._decode_pieces(row[:count]) for row, count in rows], batch_first=True)
        else:
            wave, _ = self.model.decode(codes.values, codes.lengths)
        valid = torch.arange(wave.shape[1], device=wave.device) < codes.samples[:, None]
        return (wave * valid)[:, : int(codes.samples.max())]

    def _long(self, codes: int) -> bool:
        return codes > WHOLE_S * self.model.codes_per_second

    def _decode_pieces(self, codes: Tensor) -> Tensor:
        """Codes of a row -> (samples,), a whole hop for the last one too."""
        if not self._long(len(codes)):
            return self.model.decode(codes[None], torch.tensor([len(codes)], device=codes.device))[0][0]
        if not self.causal:
            return torch.cat(list(Windowed(self.model).run([codes])))
        columns = codes if self.codebooks > 1 else codes[:, None]
        return run(self.model.decoding(WHOLE_CHUNKS), [columns], batch=1)[0].flatten()

    def _check_lengths(self, codes: Codes) -> None:
        batch, time = codes.values.shape[:2]
        fitting = codes.lengths.shape == codes.samples.shape == (batch,) and all(
            0 <= count <= time and 0 <= samples <= count * self.hop
            for count, samples in zip(codes.lengths.tolist(), codes.samples.tolist(), strict=True)
        )
        if not fitting:
            raise InputError(
                f"each of {batch} rows needs a length from 0 to {time} codes and no more samples than those"
            )

    def check_codebooks(self, codebooks: int | None) -> None:
        """Raises InputError where the codec has not so many codebooks."""
        if codebooks is not None and not 1 <= codebooks <= self.codebooks:
            raise InputError(f"this codec has {self.codebooks} codebook{'s' * (self.codebooks > 1)}, not {codebooks}")

    def check(self, codes: Tensor, batch: int = 1) -> None:
        """Raises InputError where a code is none of this codec's, or they have not so many dimensions of rows."""
        dims = batch + 1 + (self.codebooks > 1)
        if codes.dim() != dims or (self.codebooks > 1 and not 1 <= codes.shape[-1] <= self.codebooks):
            shape = f"({'batch, ' * batch}time{f', 1 to {self.codebooks}' if self.codebooks > 1 else ''})"
            raise InputError(f"codes must be {shape}, got {tuple(codes.shape)}")
        if codes.dtype not in (torch.int64, torch.int32):
            raise InputError(f"codes must be int64 or int32, got {codes.dtype}")
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.size:
            raise InputError(
                f"codes must be from 0 to {self.size - 1}, got {int(codes.min())} to {int(codes.max())}: they are of "
                "another codec, or damaged"
            )

    @torch.inference_mode()
    def encode_stream(self, pieces: Iterable[Tensor], codebooks: int | None = None) -> Iterator[Tensor]:
        """Pieces (samples,) of any size -> pieces (codes,), which together are those of the whole.

        They are (codes, codebooks) of a codec with several codebooks. Errors as `encode`, of each piece.
        """
        self.check_codebooks(codebooks)
        stream, columns = Stream(self.model.encoding(self.chunks)), 0 if self.codebooks == 1 else slice(codebooks)
        for piece in pieces:
            samples = checked(piece, (1,)).to(self.model.device)
            yield from (found[:, columns] for found in stream.push(samples[:, None]) if len(found))
        yield from (found[:, columns] for found in stream.flush() if len(found))

    @torch.inference_mode()
    def decode_stream(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        """Pieces (codes,), or (codes, codebooks), of any size -> pieces (samples,), a whole hop for the last code too.

        A causal codec gives what it gives for the whole; another one decodes in windows of some seconds, one fading
        into the next (`Windowed`).
        """
        if not self.causal:
            yield from Windowed(self.model).run(self._checked(pieces))
            return
        stream = Stream(self.model.decoding(self.chunks))
        for piece in self._checked(pieces):
            columns = piece if self.codebooks > 1 else piece[:, None]
            yield from (found.flatten() for found in stream.push(columns) if len(found))
        yield from (found.flatten() for found in stream.flush() if len(found))

    def _checked(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        for piece in pieces:
            self.check(piece, batch=0)
            yield piece.to(self.model.device)
