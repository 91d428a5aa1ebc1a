"""Exports of codecs: encoder and decoder for recordings of any length and, where they can stream, chunk by chunk."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from speechkit.codecs.codec import CHUNKS, Codec
from speechkit.codecs.wavtokenizer import FromCodes, WavTokenizer
from speechkit.errors import InputError
from speechkit.onnx import WEIGHTS
from speechkit.onnx.codec_check import Trip, check_networks, check_trips, trips
from speechkit.onnx.codes import layers
from speechkit.onnx.folder import described, write_meta
from speechkit.onnx.publish import Export, Recordings, Say
from speechkit.streaming.chain import Chain
from speechkit.streaming.export import EXAMPLE_ROWS, export_function, export_stream, share_weights


class FromColumns(FromCodes):
    """Codes (batch, time, codebooks) to latents; a code under 0 adds nothing, so one graph takes fewer codebooks."""

    def _changed(self, x: Tensor) -> Tensor:
        return self.latents(x)

    def latents(self, x: Tensor) -> Tensor:
        """(batch, time, codebooks) -> (batch, time, dim)."""
        parts = zip(layers(self.quantizer), x.long().unbind(-1), strict=True)
        return torch.stack([layer.decode(code.clamp(min=0)) * (code >= 0)[..., None] for layer, code in parts]).sum(0)


class WholeEncoder(nn.Module):
    """Recordings to codes."""

    def __init__(self, model: WavTokenizer) -> None:
        super().__init__()
        self.model = model

    def forward(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, samples), (batch,) -> (batch, codes, codebooks), (batch,)."""
        codes, counts = self.model.encode(wave, lengths)
        return codes if self.model.codebooks > 1 else codes[..., None], counts


class WholeDecoder(nn.Module):
    """Codes to sound."""

    def __init__(self, model: WavTokenizer) -> None:
        super().__init__()
        self.columns, self.decoder = FromColumns(model.quantizer), model.decoder

    def forward(self, codes: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, codes, codebooks), (batch,) -> (batch, codes * hop), (batch,) samples."""
        wave, samples = self.decoder(self.columns.latents(codes), lengths)
        return wave, samples


class CodecExport(Export):
    """A codec.

    Args:
        codec: the codec.
        recordings: on which its sound is compared.
        chunks: codes of a call of the streams.

    Raises:
        InputError: it is an export itself.
    """

    use = "speechkit codec encode FILE.wav -o FILE.skc --model {}"

    def __init__(self, codec: Codec, recordings: Recordings = (), chunks: int = CHUNKS) -> None:
        if not isinstance(codec.model, WavTokenizer):
            raise InputError("this model is an export: take the release that it was made of")
        self.codec, self.model, self.recordings = codec, codec.model, recordings
        self.chunks = chunks
        self._known: dict[int, list[Trip]] = {}  # of the model, on the recordings

    def write(self, folder: Path) -> None:
        """As `Export.write`."""
        model = self.model
        self._write_whole(folder)
        streams: dict[str, tuple[Chain, int, int | None]] = {"encoder": (model.encoding(self.chunks), 1, None)}
        if model.causal:
            parts = Chain(FromColumns(model.quantizer), *model.decoder.streaming(), chunks=self.chunks)
            streams["decoder"] = (parts, model.codebooks, model.size)
        meta: dict[str, Any] = described("codec") | {
            "rate": model.rate, "hop": model.hop, "size": model.size, "codebooks": model.codebooks,
            "weights": model.fingerprint().hex(),
            "graphs": {"encoder": "encoder.onnx", "decoder": "decoder.onnx"}, "streams": {},
        }  # fmt: skip
        for name, (module, dim, codes) in streams.items():
            file = f"{name}_stream.onnx"
            interface = export_stream(module, folder / file, dim, codes=codes)
            meta["streams"][name] = {"file": file, "stream": interface.as_dict()}
        share_weights(sorted(folder.glob("*.onnx")), WEIGHTS)
        write_meta(folder, meta)

    def _write_whole(self, folder: Path) -> None:
        model, rows, codes = self.model, EXAMPLE_ROWS, 9
        lengths = torch.arange(codes, codes - rows, -1)
        export_function(
            WholeEncoder(model), (torch.randn(rows, codes * model.hop), lengths * model.hop), folder / "encoder.onnx",
            ["wave", "lengths"], ["codes", "code_lengths"], {"wave": ("batch", "samples")},
        )  # fmt: skip
        export_function(
            WholeDecoder(model), (torch.randint(model.size, (rows, codes, model.codebooks)), lengths),
            folder / "decoder.onnx", ["codes", "lengths"], ["wave", "wave_lengths"], {"codes": ("batch", "time")},
        )  # fmt: skip

    def reduced(self, meta: Mapping[str, Any]) -> Sequence[str]:
        """The decoders: of an encoder in eight bits some codes are others, and it takes as long."""
        streams = meta["streams"]
        return [meta["graphs"]["decoder"], *([streams["decoder"]["file"]] if "decoder" in streams else [])]

    def check(self, exported: Any, precision: str, say: Say) -> None:
        """As `Export.check`."""
        check_networks(self.model, exported.model, precision, say)
        for i, (split, waves, _) in enumerate(self.recordings):
            self._known[i] = self._known.get(i) or trips(self.codec, waves)
            check_trips(self._known[i], trips(exported, waves), precision, split, self.codec.rate, say)
