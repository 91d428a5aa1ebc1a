"""Whether a codec's export computes what its model does: streams, whole recordings, and what is heard of real ones."""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from speechkit.codecs.codec import CHUNKS, Codec
from speechkit.codecs.codec_model import CodecModel
from speechkit.codecs.wavtokenizer import WavTokenizer
from speechkit.errors import InputError
from speechkit.metrics.audio import mel_distance
from speechkit.onnx.codes import distances
from speechkit.onnx.parity import ROWS, TOLERANCE, chained, check_counts, check_parity, compared
from speechkit.onnx.publish import Say

LENGTHS = (1, 10, 41)  # codes of whole recordings that are compared
UNDER_DB = 20.0  # that eight bits must lie under the wave: at 20 dB recordings are 0.2 % farther, at 14 dB 1 %
WORSE = 0.01  # nepers by which recordings may be farther from what was encoded: codecs lose 0.5 and more
LEAST = 1e-30  # of an energy
Pairs = Sequence[tuple[Tensor, Tensor]]  # the model's and the export's


@torch.inference_mode()
def check_networks(model: WavTokenizer, exported: CodecModel, precision: str, say: Say) -> None:
    """Compares graphs with their model on noise and random codes.

    Raises:
        InputError: they differ, or in eight bits by too much.
    """
    torch.manual_seed(0)
    chunks = exported.encoding().chunk // model.hop
    encoders = {
        "encoder": _encoded(model, exported),
        "encoder_stream": chained(model.encoder.streaming(chunks), exported.encoding()),
    }
    decoders = {"decoder": _decoded(model, exported)}
    if model.causal:

        def draw(count: int) -> Tensor:
            return torch.randint(model.size, (ROWS, count, model.codebooks))

        decoders["decoder_stream"] = chained(model.decoding(chunks), exported.decoding(), draw=draw)
    found = [
        distances(model.quantizer, name, *(torch.cat(parts) for parts in zip(*pairs, strict=True)))
        for name, pairs in encoders.items()
    ]
    check_parity(precision, found, say, lambda _: TOLERANCE)
    exact = precision == "fp32"
    found = [compared(None, name, pairs) for name, pairs in decoders.items()]
    check_parity(precision, found, say, lambda _: TOLERANCE if exact else sys.float_info.max)
    if not exact:
        _check_levels(precision, decoders, say)


def _encoded(model: WavTokenizer, exported: CodecModel) -> Pairs:
    """Latents of the one and codes (time, codebooks) of the other, of batches with rows of different lengths."""
    pairs = []
    for count in LENGTHS:
        longest = count * model.hop - model.hop // 2  # the last code is not full
        lengths = torch.tensor([longest, longest // 2 + 1, 1])
        wave = 0.1 * torch.randn(len(lengths), longest)
        latents, ours = model.encoder(wave, lengths)
        codes, theirs = exported.encode(wave, lengths)
        check_counts(ours, theirs)
        codes = codes if model.codebooks > 1 else codes[..., None]
        pairs += [(latents[row, :n], codes[row, :n]) for row, n in enumerate(ours.tolist())]
    return pairs


def _decoded(model: WavTokenizer, exported: CodecModel) -> Pairs:
    """Samples of both, of batches with rows of different lengths."""
    pairs = []
    for count in LENGTHS:
        lengths = torch.tensor([count, count // 2 + 1, 1])
        codes = torch.randint(model.size, (len(lengths), count, model.codebooks))
        codes = codes if model.codebooks > 1 else codes[..., 0]
        (ours, samples), (theirs, others) = model.decode(codes, lengths), exported.decode(codes, lengths)
        check_counts(samples, others)
        pairs.append((ours, theirs))
    return pairs


def _check_levels(precision: str, decoders: Mapping[str, Pairs], say: Say) -> None:
    for name, pairs in decoders.items():
        energy = sum(float(ours.square().sum()) for ours, _ in pairs)
        apart = sum(float((ours - theirs).square().sum()) for ours, theirs in pairs)
        under = 10 * math.log10(max(energy, LEAST) / max(apart, LEAST))
        say(f"{precision} {name}: the difference lies {under:.1f} dB under the wave")
        if not under >= UNDER_DB:
            raise InputError(
                f"the {precision} graphs do not sound as the model does: the difference lies {under:.1f} dB under the "
                f"wave, where {UNDER_DB:g} dB are needed"
            )


class Trip(NamedTuple):
    """What comes of a recording."""

    codes: Tensor  # (codes,) or (codes, codebooks)
    samples: int
    mel_distance: float  # between what comes back and the recording, nepers


@torch.inference_mode()
def trips(codec: Codec, waves: Sequence[Tensor]) -> list[Trip]:
    """Recordings (samples,) there and back, piece by piece."""
    found = []
    for wave in waves:
        codes = torch.cat(list(codec.encode_stream(wave.split(codec.rate))))
        back = torch.cat(list(codec.decode_stream(codes.split(CHUNKS))))[: len(wave)]
        found.append(Trip(codes, len(wave), mel_distance(back.numpy(), wave.numpy(), codec.rate)))
    return found


def check_trips(ours: Sequence[Trip], theirs: Sequence[Trip], precision: str, split: str, rate: int, say: Say) -> None:
    """Compares what comes of recordings of a split by the model and by the export.

    Raises:
        InputError: the export's sound is farther from the recordings.
    """
    samples = sum(trip.samples for trip in ours)
    means = [sum(trip.mel_distance * trip.samples for trip in found) / samples for found in (ours, theirs)]
    equal = torch.cat([(a.codes == b.codes).flatten() for a, b in zip(ours, theirs, strict=True)])
    say(
        f"{precision} {split} ({samples / rate:.0f} s): {100 * equal.double().mean():.2f} % of the codes are the "
        f"model's, mel distance {means[1]:.4f}, the model's {means[0]:.4f}"
    )
    if not means[1] - means[0] <= WORSE:
        raise InputError(
            f"what the {precision} graphs give is {means[1] - means[0]:.3f} nepers farther from the recordings, where "
            f"{WORSE:g} is allowed"
        )
