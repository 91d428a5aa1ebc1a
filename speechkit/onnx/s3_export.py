"""Exports of speech tokenizers: features and windows as graphs of any length, or the stream of a causal one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.codecs.s3 import DEPTH, FLOOR, HOP, N_FFT, S3Tokenizer, SpeechTokenizer, WhisperMel
from speechkit.codecs.s3_causal import CausalS3Tokenizer
from speechkit.errors import InputError
from speechkit.nn.masks import valid_mask
from speechkit.onnx import WEIGHTS
from speechkit.onnx.codes import distances
from speechkit.onnx.folder import described, write_meta
from speechkit.onnx.parity import TOLERANCE, Parity, chained, check_counts, check_parity, compared
from speechkit.onnx.publish import Export, Recordings, Say
from speechkit.streaming.chain import Chain
from speechkit.streaming.export import EXAMPLE_ROWS, export_function, export_stream, share_weights

LENGTHS = (1, 37, 300)  # frames of recordings that are compared
OTHERS = 0.01  # share of the codes that may be others on recordings: of such that two whole numbers are as near to


class WhisperGraph(nn.Module):
    """`WhisperMel` as a graph computes it: the transform is a convolution."""

    def __init__(self, front: WhisperMel) -> None:
        super().__init__()
        bins = N_FFT // 2 + 1
        angle = 2 * torch.pi / N_FFT * torch.outer(torch.arange(bins).double(), torch.arange(N_FFT).double())
        basis = torch.cat([angle.cos(), -angle.sin()]) * front.window.double()
        self.register_buffer("basis", basis.to(front.bank)[:, None])
        self.register_buffer("bank", front.bank)
        self.basis: Tensor
        self.bank: Tensor

    def forward(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, samples), a frame's at least, (batch,) -> (batch, samples // 160, mels), (batch,)."""
        frames, counts = wave.shape[1] // HOP, lengths.div(HOP, rounding_mode="floor")
        time = torch.arange(frames * HOP + N_FFT - HOP) - N_FFT // 2
        last = (lengths[:, None] - 1).clamp(min=1)
        place = last - (last - time % (2 * last)).abs()  # each row is mirrored at its own ends
        seen = wave.gather(1, place.clamp(max=wave.shape[1] - 1))
        real, imaginary = F.conv1d(seen[:, None], self.basis, stride=HOP).chunk(2, dim=1)
        power = (real.square() + imaginary.square()).transpose(1, 2) @ self.bank
        decades = power.clamp(min=FLOOR).log10()
        rest = ~valid_mask(counts, frames)[..., None]
        loudest = decades.masked_fill(rest, -torch.inf).amax(dim=(1, 2), keepdim=True)
        return ((torch.maximum(decades, loudest - DEPTH) + 4) / 4).masked_fill(rest, 0), counts


class WindowGraph(nn.Module):
    """Features of up to 30 s to codes."""

    def __init__(self, model: S3Tokenizer) -> None:
        super().__init__()
        self.encoder, self.quantizer = model.encoder, model.quantizer

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, frames, mels), (batch,) -> (batch, codes), (batch,)."""
        latents, counts = self.encoder(features, lengths)
        return self.quantizer.encode(latents), counts


class TokenizerExport(Export):
    """A speech tokenizer.

    Args:
        tokenizer: the tokenizer.
        recordings: on which its codes are compared.

    Raises:
        InputError: it is an export itself.
    """

    precisions = ("fp32",)  # in eight bits the codes would be others
    use = "speechkit codec encode FILE.wav -o FILE.skc --model {}"

    def __init__(self, tokenizer: SpeechTokenizer, recordings: Recordings = ()) -> None:
        if type(tokenizer.model) not in (S3Tokenizer, CausalS3Tokenizer):
            raise InputError("this model is an export: take the release that it was made of")
        self.tokenizer, self.recordings = tokenizer, recordings
        self.model: Any = tokenizer.model

    def write(self, folder: Path) -> None:
        """As `Export.write`."""
        model = self.model
        about = {"rate": model.rate, "size": model.size, "mels": model.encoder.mels, "stride": model.encoder.stride}
        meta: dict[str, Any] = described("s3") | about | {"weights": model.fingerprint().hex()}
        if isinstance(model, S3Tokenizer):
            meta |= {"windows": model.windows, "compat": model.compat}
            meta["graphs"] = {"front": "front.onnx", "encoder": "encoder.onnx"}
            self._write_graphs(folder)
        else:
            interface = export_stream(model.encoding(), folder / "encoder_stream.onnx", 1)
            meta["stream"] = {"file": "encoder_stream.onnx", "stream": interface.as_dict()}
        share_weights(sorted(folder.glob("*.onnx")), WEIGHTS)
        write_meta(folder, meta)

    def _write_graphs(self, folder: Path) -> None:
        frames = 37
        lengths = torch.arange(frames, frames - EXAMPLE_ROWS, -1)
        front = WhisperGraph(self.model.front)
        export_function(
            front, (torch.randn(EXAMPLE_ROWS, frames * HOP), lengths * HOP), folder / "front.onnx",
            ["wave", "lengths"], ["features", "frames"], {"wave": ("batch", "samples")},
        )  # fmt: skip
        features = torch.randn(EXAMPLE_ROWS, frames, self.model.encoder.mels)
        export_function(
            WindowGraph(self.model), (features, lengths), folder / "encoder.onnx",
            ["features", "lengths"], ["codes", "code_lengths"], {"features": ("batch", "frames")},
        )  # fmt: skip

    def reduced(self, meta: Mapping[str, Any]) -> Sequence[str]:
        """None."""
        return []

    @torch.inference_mode()
    def check(self, exported: Any, precision: str, say: Say) -> None:
        """As `Export.check`."""
        torch.manual_seed(0)
        found = self._windows(exported.model) if isinstance(self.model, S3Tokenizer) else self._stream(exported.model)
        check_parity(precision, found, say, lambda _: TOLERANCE)
        for split, waves, _ in self.recordings:
            pairs = [(self.tokenizer.encode(wave)[0], exported.encode(wave)[0]) for wave in waves]
            self._check_codes(pairs, precision, split, say)

    def _windows(self, exported: Any) -> list[Parity]:
        """Batches with rows of different lengths: noise for samples and, for more of the codes, for features."""
        features, latents, codes = [], [], []
        for count in LENGTHS:
            lengths = torch.tensor([count * HOP + 7, count * HOP // 2 + 1, 3])
            wave = 0.1 * torch.randn(len(lengths), count * HOP + 7)
            (ours, frames), (theirs, others) = self.model.front(wave, lengths), exported.front(wave, lengths)
            check_counts(frames, others)
            features.append((ours, theirs))
            x = torch.randn_like(ours)
            (vectors, counts), (found, others) = self.model.encoder(x, frames), exported.encoder(x, frames)
            check_counts(counts, others)
            valid = valid_mask(counts, vectors.shape[1])
            latents.append(vectors[valid])
            codes.append(found[valid])
        near = distances(self.model.quantizer, "encoder", torch.cat(latents), torch.cat(codes)[:, None])
        return [compared(None, "front", features), near]

    def _stream(self, exported: Any) -> list[Parity]:
        chain = self.model.encoding()
        pairs = chained(Chain(*chain.modules[:-1]), exported.encoding())
        latents, codes = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        return [distances(self.model.quantizer, "encoder_stream", latents, codes)]

    def _check_codes(self, pairs: Sequence[tuple[Tensor, Tensor]], precision: str, split: str, say: Say) -> None:
        equal = torch.cat([(ours == theirs).flatten() for ours, theirs in pairs]).double().mean()
        say(f"{precision} {split}: {100 * equal:.2f} % of the codes are the model's")
        if not equal >= 1 - OTHERS:
            raise InputError(
                f"only {100 * equal:.2f} % of the codes are the model's: {100 - 100 * OTHERS:g} are needed"
            )
