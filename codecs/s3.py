"""The S3 tokenizers (Du et al. 2024, CosyVoice 1 to 3): 16 kHz speech to one code for every 20 or 40 ms."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from speechkit.codecs.fingerprint import fingerprint
from speechkit.codecs.quantizers import FiniteScalarQuantizer, Quantized, VectorQuantizer
from speechkit.codecs.s3_layers import S3Encoder
from speechkit.errors import InputError
from speechkit.nn.masks import valid_mask
from speechkit.nn.mel import mel_bank
from speechkit.streaming.chain import Chain
from speechkit.streaming.stream import Stream

RATE = 16_000
N_FFT, HOP = 400, 160
FLOOR, DEPTH = 1e-10, 8.0  # the least power, and how many tens below its loudest an utterance is heard
WINDOW, OVERLAP = 3000, 400  # frames: 30 s, of which neighbours share 4 s
BLOCK = 6000  # frames whose spectra are held at a time


class Window(NamedTuple):
    """A part of a row that the encoder hears at once."""

    row: int
    first: int
    frames: int


class WhisperMel(nn.Module):
    """Whisper's features (Radford et al. 2022, section 2.2): Slaney mel, decades, the loudest 8 of them."""

    def __init__(self, mels: int = 128) -> None:
        super().__init__()
        if not 1 <= mels <= 1024:
            raise ValueError(f"mels must be from 1 to 1024, got {mels}")
        self.mels = mels
        self.register_buffer("bank", mel_bank(RATE, N_FFT, mels), persistent=False)
        self.register_buffer("window", torch.hann_window(N_FFT), persistent=False)
        self.bank: Tensor
        self.window: Tensor

    def forward(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, samples) at 16 kHz, (batch,) -> (batch, samples // 160, mels), zero after each row's own frames."""
        wave, counts = wave.to(self.bank.dtype), lengths.div(HOP, rounding_mode="floor")
        frames = wave.shape[1] // HOP
        if not frames:
            return wave.new_zeros(len(wave), 0, self.mels), counts
        with torch.autocast(wave.device.type, enabled=False):
            blocks = [self._power(wave, lengths, t, min(BLOCK, frames - t)) for t in range(0, frames, BLOCK)]
        decades = torch.cat(blocks, dim=1).clamp(min=FLOOR).log10()
        rest = ~valid_mask(counts, frames)[..., None]
        loudest = decades.masked_fill(rest, -torch.inf).amax(dim=(1, 2), keepdim=True)
        return ((torch.maximum(decades, loudest - DEPTH) + 4) / 4).masked_fill(rest, 0), counts

    def _power(self, wave: Tensor, lengths: Tensor, first: int, frames: int) -> Tensor:
        """Frames around every 160th sample, each row mirrored at its own ends: (batch, frames, mels)."""
        time = torch.arange(-N_FFT // 2, (frames - 1) * HOP + N_FFT // 2, device=wave.device) + first * HOP
        period = 2 * (lengths[:, None] - 1).clamp(min=1)
        place = time % period
        windows = wave.gather(1, torch.minimum(place, period - place).clamp(max=wave.shape[1] - 1))
        spectrum = torch.fft.rfft(windows.unfold(1, N_FFT, HOP) * self.window)
        return (spectrum.real.square() + spectrum.imag.square()) @ self.bank


class TokenEmbedding(nn.Module):
    """A learned vector for every code: how models that follow read tokens, which were published without a way back."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.size, self.table = size, nn.Embedding(size, dim)

    def forward(self, codes: Tensor, lengths: Tensor) -> Tensor:
        """(batch, time), (batch,) -> (batch, time, dim), zero after each row's valid ones."""
        valid = valid_mask(lengths, codes.shape[1])
        return self.table(codes.masked_fill(~valid, 0)) * valid[..., None]


class TokenModel(nn.Module, ABC):
    """Speech to tokens: a front end, an encoder, a quantiser.

    Args:
        front: samples to mel frames.
        encoder: mel frames to vectors.
        quantizer: vectors to codes.
    """

    rate = RATE
    streams = False  # whether `encoding` can

    def __init__(self, front: nn.Module, encoder: Any, quantizer: VectorQuantizer | FiniteScalarQuantizer) -> None:
        super().__init__()
        self.front, self.encoder, self.quantizer = front, encoder, quantizer

    @property
    def size(self) -> int:
        """Codes that there are."""
        return self.quantizer.size

    @property
    def hop(self) -> int:
        """Samples of a code."""
        return HOP * self.encoder.stride

    @property
    def codes_per_second(self) -> float:
        """Of speech."""
        return self.rate / self.hop

    def fingerprint(self) -> bytes:
        """The hash of the weights that token files name, 16 bytes."""
        return fingerprint(self.state_dict())

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.parameters()).device

    def forward(self, wave: Tensor, lengths: Tensor) -> tuple[Quantized, Tensor]:
        """(batch, samples), (batch,) -> what training follows, (batch,) codes of each row.

        The whole is heard at once: memory grows with the square of the length.
        """
        return self.quantized(*self.front(wave, lengths))

    def quantized(self, features: Tensor, lengths: Tensor) -> tuple[Quantized, Tensor]:
        """(batch, frames, mels) of the front end, (batch,) -> as `forward`."""
        vectors, counts = self.encoder(features, lengths)
        return self.rounded(vectors, counts), counts

    def rounded(self, vectors: Tensor, counts: Tensor) -> Quantized:
        """(batch, time, dim) of the encoder, (batch,) -> what training follows, decided in single precision."""
        with torch.autocast(vectors.device.type, enabled=False):
            return self.quantizer(vectors, valid_mask(counts, vectors.shape[1]))

    @abstractmethod
    def encode(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, samples) at 16 kHz, of any length, (batch,) -> (batch, codes) int64, zero after each row's, (batch,).

        A row's codes are those that it has alone; fewer than 160 samples have none.

        Raises:
            InputError: the wave has another shape, no samples, or NaN or Inf in what is valid.
        """

    def encoding(self, chunks: int = 1) -> Chain:
        """Streams samples (batch, time, 1) to codes (batch, codes, 1), so many chunks a call.

        Raises:
            InputError: the tokenizer cannot.
        """
        raise InputError(
            "this tokenizer hears up to 30 s of speech at once, so it encodes whole recordings and does not stream; "
            "those of recipe=librispeech_s3_causal do"
        )


class S3Tokenizer(TokenModel):
    """Speech to tokens, whole or in windows of 30 s that share 4 s, of which each keeps the half at its side.

    Args:
        encoder: mel frames to vectors.
        quantizer: vectors to codes.
        windows: how many the encoder takes at once.
        compat: ``reference`` begins windows as published: beyond 52 s up to 2 s of tokens can then be lost.
    """

    def __init__(
        self,
        encoder: S3Encoder,
        quantizer: VectorQuantizer | FiniteScalarQuantizer,
        windows: int = 8,
        compat: str | None = None,
    ) -> None:
        if OVERLAP // 2 % encoder.stride:
            raise ValueError(f"the product of strides must divide {OVERLAP // 2}, got {encoder.stride}")
        if encoder.positions is not None and len(encoder.positions) * encoder.stride < WINDOW:
            raise ValueError(f"a window needs {WINDOW // encoder.stride} positions, got {len(encoder.positions)}")
        if windows < 1:
            raise ValueError(f"windows must be at least 1, got {windows}")
        if compat not in (None, "reference"):
            raise ValueError(f"compat must be 'reference' or nothing, got {compat!r}")
        super().__init__(WhisperMel(encoder.mels), encoder, quantizer)
        self.windows, self.compat = windows, compat

    @torch.no_grad()
    def encode(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As `TokenModel.encode`."""
        check_wave(wave, lengths)
        features, frames = self.front(wave, lengths)
        windows = [window for row, count in enumerate(frames.tolist()) for window in self._windows(row, count)]
        pieces: list[list[Tensor]] = [[] for _ in wave]
        for window, codes in zip(windows, self._codes(features, windows), strict=True):
            pieces[window.row].append(codes)
        rows = [self._merged(row, wave.device) for row in pieces]
        return pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows], device=wave.device)

    def _windows(self, row: int, frames: int) -> list[Window]:
        """Every 26 s, until one reaches the end; as published until none would begin before it."""
        if frames <= WINDOW:
            end = min(frames, 1)
        else:
            end = frames if self.compat == "reference" else frames - OVERLAP
        return [Window(row, first, min(WINDOW, frames - first)) for first in range(0, end, WINDOW - OVERLAP)]

    def _codes(self, features: Tensor, windows: Sequence[Window]) -> list[Tensor]:
        """The codes of each window, some windows at a time, those of about one length together."""
        found: dict[int, Tensor] = {}
        order = sorted(range(len(windows)), key=lambda i: -windows[i].frames)
        for start in range(0, len(order), self.windows):
            group = order[start : start + self.windows]
            parts = [features[w.row, w.first : w.first + w.frames] for w in (windows[i] for i in group)]
            lengths = torch.tensor([len(part) for part in parts], device=features.device)
            latents, counts = self.encoder(pad_sequence(parts, batch_first=True), lengths)
            codes = self.quantizer.encode(latents)
            found |= {i: row[:count] for i, row, count in zip(group, codes, counts.tolist(), strict=True)}
        return [found[i] for i in range(len(windows))]

    def _merged(self, parts: Sequence[Tensor], device: torch.device) -> Tensor:
        """Half of what two windows share from the one, half from the other."""
        half, last = OVERLAP // 2 // self.encoder.stride, len(parts) - 1
        kept = [part[half if i else 0 : len(part) - (half if i < last else 0)] for i, part in enumerate(parts)]
        return torch.cat([torch.zeros(0, dtype=torch.int64, device=device), *kept])


def check_wave(wave: Tensor, lengths: Tensor) -> None:
    """Raises InputError where these are no (batch, samples) with samples in them and (batch,) counts of valid ones."""
    if wave.dim() != 2 or not wave.is_floating_point():
        raise InputError(f"a wave must be (batch, samples) of real numbers, got {tuple(wave.shape)} of {wave.dtype}")
    if not wave.numel():
        raise InputError(f"a wave must hold samples, got {tuple(wave.shape)}")
    if lengths.shape != (len(wave),) or lengths.is_floating_point():
        raise InputError(f"lengths must be {len(wave)} whole numbers, got {tuple(lengths.shape)} of {lengths.dtype}")
    if not 0 <= int(lengths.min()) <= int(lengths.max()) <= wave.shape[1]:
        raise InputError(f"lengths must be from 0 to {wave.shape[1]} samples, got {lengths.tolist()}")
    if not bool((wave.isfinite() | ~valid_mask(lengths, wave.shape[1])).all()):
        raise InputError("the wave contains NaN or Inf")


class SpeechTokenizer:
    """Turns waves into tokens.

    Args:
        model: with its weights.
    """

    def __init__(self, model: TokenModel) -> None:
        self.model = model.eval()

    @property
    def rate(self) -> int:
        """Of waves, Hz."""
        return self.model.rate

    @property
    def size(self) -> int:
        """Codes that there are."""
        return self.model.size

    @property
    def hop(self) -> int:
        """Samples of a code."""
        return self.model.hop

    @property
    def codebooks(self) -> int:
        """Codebooks: one."""
        return 1

    @property
    def streams(self) -> bool:
        """Whether pieces have the codes of the whole."""
        return self.model.streams

    @property
    def encoding_latency_s(self) -> float | None:
        """Audio that the first sample of a call's codes waits for, those codes' own included; None: all of it."""
        if not self.streams:
            return None
        stream = self.model.encoding()
        return (stream.chunk - stream.stride + stream.lookahead + 1) / self.rate

    def check_codebooks(self, codebooks: int | None) -> None:
        """Raises InputError where more codebooks are asked for than the one."""
        if codebooks not in (None, 1):
            raise InputError(f"this tokenizer has 1 codebook, not {codebooks}")

    @property
    def codes_per_second(self) -> float:
        """Of speech."""
        return self.model.codes_per_second

    @torch.inference_mode()
    def encode(self, wave: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(samples,) or (batch, samples) at `rate`, (batch,) valid samples; as `S3Tokenizer.encode`."""
        if wave.dim() not in (1, 2):
            raise InputError(f"a wave must be (samples,) or (batch, samples), got {tuple(wave.shape)}")
        wave = wave[None] if wave.dim() == 1 else wave
        lengths = torch.full((len(wave),), wave.shape[1]) if lengths is None else lengths
        return self.model.encode(wave.to(self.model.device), lengths.to(self.model.device))

    @torch.inference_mode()
    def encode_stream(self, pieces: Iterable[Tensor], codebooks: int | None = None) -> Iterator[Tensor]:
        """Pieces (samples,) of any size -> pieces (codes,), which together are those of the whole.

        Raises:
            InputError: the tokenizer does not stream, or has not so many codebooks; a piece has another shape, or
                holds NaN or Inf.
        """
        self.check_codebooks(codebooks)
        stream = Stream(self.model.encoding())
        dtype = next((p.dtype for p in self.model.parameters()), torch.float32)  # an export has none
        for piece in pieces:
            if piece.numel():
                check_wave(piece[None], torch.tensor([piece.numel()], device=piece.device))
            piece = piece.to(dtype)
            yield from (found[:, 0] for found in stream.push(piece[:, None].to(self.model.device)) if len(found))
        yield from (found[:, 0] for found in stream.flush() if len(found))
