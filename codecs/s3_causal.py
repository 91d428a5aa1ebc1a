"""A causal S3 tokenizer: one code for every 40 ms, of speech as it comes, whatever follows the chunk."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from speechkit.codecs.quantizers import FiniteScalarQuantizer, VectorQuantizer
from speechkit.codecs.s3 import DEPTH, N_FFT, RATE, TokenModel, check_wave
from speechkit.codecs.s3_causal_layers import CausalS3Encoder
from speechkit.features import LogMel
from speechkit.nn.masks import valid_mask
from speechkit.streaming.chain import Chain
from speechkit.streaming.state import Chunk
from speechkit.streaming.stream import run

SILENT = -1e4  # less than any feature
ROWS, CODES = 8, 250  # rows and codes of a call where whole recordings are encoded


class RunningFloor(nn.Module):
    """Holds features to some depth below the loudest so far, where Whisper's are held below the loudest of all.

    Args:
        depth: of log-mel features.
    """

    chunk = first = stride = 1
    lookahead = 0

    def __init__(self, depth: float) -> None:
        super().__init__()
        self.depth = depth
        self.register_buffer("silent", torch.tensor([SILENT]), persistent=False)
        self.silent: Tensor

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, frames, mels), (batch,) -> the same shapes."""
        return self._held(x, lengths, self.init_state(len(x)))[0], lengths

    def init_state(self, batch: int) -> Tensor:
        """(batch, 1): the loudest so far."""
        return self.silent.expand(batch, 1).clone()

    def step(self, x: Chunk, state: Tensor) -> tuple[Chunk, Tensor]:
        """(batch, frames, mels) -> the same shape."""
        values, state = self._held(x.values, x.lengths, state)
        return x._replace(values=values), state

    def _held(self, x: Tensor, lengths: Tensor, loudest: Tensor) -> tuple[Tensor, Tensor]:
        valid = valid_mask(lengths, x.shape[1])
        each = torch.cat([loudest, x.amax(2).masked_fill(~valid, SILENT)], dim=1)
        shift = 1
        while shift < each.shape[1]:  # the running maximum, which graphs have no operator for
            each = torch.maximum(each, F.pad(each[:, :-shift], (shift, 0), value=SILENT))
            shift *= 2
        held = torch.maximum(x, each[:, 1:, None] - self.depth)
        return held * valid[..., None], each[:, -1:]


class RunningMel(nn.Module):
    """Whisper's features without knowledge of what comes: scaled decades above a running floor.

    Frames lie as in `LogMel`: zeros are outside where Whisper's are mirrored, and 200 samples after its centre are
    waited for.
    """

    def __init__(self, mels: int = 128) -> None:
        super().__init__()
        scale = 4 * math.log(10)  # (log10(x) + 4) / 4
        self.mel = LogMel(
            RATE, mels, n_fft=N_FFT, preemphasis=0.0, dither=0.0, mean=-scale, deviation=scale, length_rule="floor"
        )
        self.floor = RunningFloor(DEPTH / 4)

    def parts(self) -> list[Any]:
        """Streaming modules from samples to frames."""
        return [self.mel, self.floor]

    def forward(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, samples) at 16 kHz, (batch,) -> (batch, samples // 160 + 1, mels), zero after each row's end."""
        return self.floor(*self.mel(wave, lengths))


class ToTokens(nn.Module):
    """Vectors to codes, which needs no state."""

    chunk = first = stride = 1
    lookahead = 0

    def __init__(self, quantizer: VectorQuantizer | FiniteScalarQuantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def init_state(self, batch: int) -> Tensor:
        """Nothing, in a tensor."""
        return next(self.quantizer.buffers()).new_zeros(batch, 0)

    def step(self, x: Chunk, state: Tensor) -> tuple[Chunk, Tensor]:
        """(batch, time, dim) -> (batch, time, 1)."""
        codes = self.quantizer.encode(x.values) * valid_mask(x.lengths, x.values.shape[1])
        return x._replace(values=codes[..., None]), state


class CausalS3Tokenizer(TokenModel):
    """Speech to tokens, whole or piece by piece with the same codes.

    Args:
        encoder: mel frames to vectors.
        quantizer: vectors to codes.
    """

    streams = True

    def __init__(self, encoder: CausalS3Encoder, quantizer: VectorQuantizer | FiniteScalarQuantizer) -> None:
        super().__init__(RunningMel(encoder.mels), encoder, quantizer)

    def encoding(self, chunks: int = 1) -> Chain:
        """As `TokenModel.encoding`."""
        assert isinstance(self.front, RunningMel)
        return Chain(*self.front.parts(), *self.encoder.parts(chunks), ToTokens(self.quantizer))

    @torch.no_grad()
    def encode(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As `TokenModel.encode`, in calls of some seconds: memory does not grow with the length."""
        check_wave(wave, lengths)
        chunks = max(1, CODES // (self.encoder.context[1] + 1))
        rows = [row[:count, None].to(self.dtype) for row, count in zip(wave, lengths.tolist(), strict=True)]
        codes = [found[:, 0] for found in run(self.encoding(chunks), rows, ROWS)]
        counts = torch.tensor([len(row) for row in codes], device=wave.device)
        return pad_sequence(codes, batch_first=True), counts

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return next(self.parameters()).dtype
