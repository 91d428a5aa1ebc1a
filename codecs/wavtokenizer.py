"""WavTokenizer (Ji et al. 2024): samples to one code for every hop, or one of each of several codebooks, and back."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from speechkit.codecs.fingerprint import fingerprint
from speechkit.codecs.quantizers import ResidualQuantizer, VectorQuantizer
from speechkit.codecs.seanet import SeanetEncoder
from speechkit.codecs.vocos import VocosDecoder
from speechkit.nn.masks import valid_mask
from speechkit.nn.precision import unreduced
from speechkit.streaming.chain import Chain
from speechkit.streaming.state import Chunk

MAX_RATE = 768_000  # Hz


class Reconstruction(NamedTuple):
    """What training compares with what it was made of."""

    wave: Tensor  # (batch, frames * hop)
    codes: Tensor  # (batch, frames), or (batch, frames, codebooks)
    commitment: Tensor  # scalar


class WavTokenizer(nn.Module):
    """A codec with one codebook, as published, or several.

    Codes are (batch, time) of one codebook, (batch, time, codebooks) of a residual quantiser.

    Args:
        encoder: samples to latents.
        quantizer: latents to codes.
        decoder: latents to samples.
        rate: of the samples, Hz.
    """

    def __init__(
        self,
        encoder: SeanetEncoder,
        quantizer: VectorQuantizer | ResidualQuantizer,
        decoder: VocosDecoder,
        rate: int = 24_000,
    ) -> None:
        super().__init__()
        if encoder.hop != decoder.hop:
            raise ValueError(f"encoder and decoder must have one hop, got {encoder.hop} and {decoder.hop} samples")
        if not 1 <= rate <= MAX_RATE:
            raise ValueError(f"rate must be from 1 to {MAX_RATE} samples a second, got {rate}")
        self.encoder, self.quantizer, self.decoder = encoder, quantizer, decoder
        self.rate, self.hop = rate, encoder.hop

    @property
    def size(self) -> int:
        """Codes of a codebook."""
        return self.quantizer.size

    @property
    def codebooks(self) -> int:
        """Codebooks."""
        return self.quantizer.codebooks

    @property
    def causal(self) -> bool:
        """Whether decoding can stream."""
        return self.decoder.causal

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.parameters()).device

    @property
    def codes_per_second(self) -> float:
        """Of one codebook."""
        return self.rate / self.hop

    def fingerprint(self) -> bytes:
        """The hash of the weights."""
        return fingerprint(self.state_dict())

    def encode(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, samples) at `rate`, (batch,) -> codes int64, (batch,); rows do not depend on one another."""
        latents, counts = self.encoder(wave, lengths)
        with unreduced(latents):
            return self.quantizer.encode(self._whole(latents)), counts

    def _whole(self, latents: Tensor) -> Tensor:
        return latents.to(next(self.quantizer.buffers()).dtype)

    def decode(self, codes: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Codes, of the first codebooks alone or of all, (batch,) -> (batch, codes * hop), (batch,) samples.

        The last hop is whole.
        """
        wave, samples = self.decoder(self.quantizer.decode(codes), lengths)
        return wave, samples

    def forward(self, wave: Tensor, lengths: Tensor, whole: bool = False) -> Reconstruction:
        """(batch, samples), (batch,) -> what comes back, with the gradient of all three parts.

        Where all rows are known to be `whole`, as long as the batch, nothing has to wait for the device.
        """
        latents, counts = self.encoder(wave, lengths)
        mask = None if whole else valid_mask(counts, latents.shape[1])
        with unreduced(latents):  # half precision would take other codes
            quantized = self.quantizer(self._whole(latents), None if mask is None or bool(mask.all()) else mask)
        return Reconstruction(self.decoder(quantized.values, counts)[0], quantized.codes, quantized.loss)

    def encoding(self, chunks: int = 1) -> Chain:
        """Streams samples (batch, time, 1) to codes (batch, codes, codebooks), so many codes a call."""
        return Chain(*self.encoder.parts(), ToCodes(self.quantizer), chunks=chunks)

    def decoding(self, chunks: int = 1) -> Chain:
        """Streams codes (batch, time, codebooks or fewer) to samples (batch, time, hop), so many codes a call.

        Errors as `VocosDecoder.streaming`.
        """
        return Chain(FromCodes(self.quantizer), *self.decoder.streaming(), chunks=chunks)


class _Pointwise(nn.Module, ABC):
    """A part that needs no state."""

    chunk = first = stride = 1
    lookahead = 0

    def __init__(self, quantizer: VectorQuantizer | ResidualQuantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def init_state(self, batch: int) -> Tensor:
        """Nothing, in a tensor."""
        return next(self.quantizer.buffers()).new_zeros(batch, 0)

    @abstractmethod
    def _changed(self, x: Tensor) -> Tensor:
        """(batch, time, dim) -> (batch, time, dim')."""

    def step(self, x: Chunk, state: Any) -> tuple[Chunk, Any]:
        """(batch, time, dim) -> (batch, time, dim')."""
        valid = torch.arange(x.values.shape[1], device=x.lengths.device) < x.lengths[:, None]
        return x._replace(values=self._changed(x.values) * valid[..., None]), state


class ToCodes(_Pointwise):
    """Latents to codes."""

    def _changed(self, x: Tensor) -> Tensor:
        codes = self.quantizer.encode(x)
        return codes if self.quantizer.codebooks > 1 else codes[..., None]


class FromCodes(_Pointwise):
    """Codes to latents."""

    def _changed(self, x: Tensor) -> Tensor:
        codes = x.long()
        return self.quantizer.decode(codes if self.quantizer.codebooks > 1 else codes[..., 0])
