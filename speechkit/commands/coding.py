"""Recordings to token files and back, piece by piece."""

import contextlib
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from speechkit import hub
from speechkit.codecs.codec import Codec
from speechkit.codecs.container import TokenHeader, TokenReader, TokenWriter
from speechkit.codecs.s3 import SpeechTokenizer
from speechkit.codecs.token_header import model_name
from speechkit.codecs.windowed import Windowed
from speechkit.commands.progress import progress
from speechkit.commands.sources import Recording
from speechkit.errors import InputError
from speechkit.files import appearing

PIECE_S, LIVE_S = 1.0, 0.1  # of audio that the codec is given at a time: of a file, of a pipe
LIVE_BLOCK_S = 0.25  # of codes in a block that goes into a pipe
ENDLESS = (1 << 32) - 1  # bytes, where a WAV header is written before they are known


Coder = Codec | SpeechTokenizer
CoderT = TypeVar("CoderT", bound=Coder, covariant=True)


class Named(NamedTuple, Generic[CoderT]):
    """A codec, and what token files say of it."""

    codec: CoderT
    header: TokenHeader


def load(model: str | None, codebooks: int | None = None) -> Named[Codec]:
    """The codec of a release folder, a .ckpt file or a hub id, or what comes along, and the header of its tokens.

    So many codebooks are in them, or all.

    Raises:
        InputError: there is none, it cannot be used, gives no sound back, or has not so many codebooks.
    """
    codec, header = load_coder(model, codebooks)
    if not isinstance(codec, Codec):
        raise InputError(
            f"no sound comes back from the tokens of {model}, a speech tokenizer: they are for other models"
        )
    return Named(codec, header)


def load_coder(model: str | None, codebooks: int | None = None) -> Named[Coder]:
    """As `load`, or a speech tokenizer, which gives tokens and no sound back.

    Raises:
        InputError: there is none, it cannot be used, or has not so many codebooks.
    """
    model = str(hub.default("codec")) if model is None else model
    found = hub.load(model)
    if not isinstance(found, Codec | SpeechTokenizer):
        raise InputError(f"{model} is no codec, which turns sound to tokens and back, but a {type(found).__name__}")
    return Named(found, TokenHeader.of(found, model_name(model), codebooks))


def described(named: Named[Coder]) -> dict[str, object]:
    """What a codec is, and the audio or codes that its streams wait for before the first of a call is known."""
    codec, header = named
    found: dict[str, object] = {
        "model": header.model, "hash": header.weights.hex(), "rate_hz": header.rate, "hop": header.hop,
        "codebooks": list(header.sizes), "bits_per_second": round(header.bits_per_second, 1),
    }  # fmt: skip
    encoding = decoding = None
    if isinstance(codec, Codec):
        encoding = f"a stream, {codec.codes_per_call} codes a call"
        decoding = encoding if codec.causal else f"windows of {Windowed(codec.model).size} codes"
    elif codec.streams:
        encoding = "a stream"
    waits = codec.encoding_latency_s, codec.decoding_latency_s if isinstance(codec, Codec) else None
    for name, how, wait in zip(("encoding", "decoding"), (encoding, decoding), waits, strict=True):
        found |= {name: how, f"{name}_latency_ms": None if wait is None else round(1000 * wait, 1)}
    return found


def encode(recording: Recording, target: Path | None, named: Named[Coder], raw_rate: int | None = None) -> None:
    """Writes a recording's tokens; the file appears whole or not at all.

    Raises:
        InputError: the recording cannot be used, or the file not be written; the sentence says why.
    """
    codec, header = named
    codec = _large(codec, target) if isinstance(codec, Codec) else codec
    samples = 0
    seconds = LIVE_S if target is None or recording.path == "-" else PIECE_S

    def heard(blocks: Iterator[np.ndarray]) -> Iterator[Tensor]:
        nonlocal samples
        for block in blocks:
            samples += len(block)
            yield torch.from_numpy(block)

    with _written(target) as file, progress(recording.path, sys.stderr.isatty()) as passed:
        blocks = passed(recording.blocks(codec.rate, seconds, raw_rate), codec.rate)
        block = {"frames": max(1, round(LIVE_BLOCK_S * codec.rate / codec.hop))} if target is None else {}
        writer: TokenWriter | None = None
        for codes in _codes(codec, heard(blocks), len(header.sizes)):
            writer = writer or TokenWriter(file, header, **block)  # nothing is written of what cannot be read
            writer.write(codes.numpy())
        if writer is None:
            least = f"a token: it has {samples} samples" if samples else "one sample"
            raise InputError(f"{recording.name} is shorter than {least} at {codec.rate} Hz.")
        writer.end(samples)


def _large(codec: Codec, target: Path | None) -> Codec:
    """With calls that suit what is written: a pipe, at whose end somebody waits, or a file."""
    return codec if target is None else codec.in_large_calls()


def _codes(codec: Coder, pieces: Iterator[Tensor], codebooks: int) -> Iterator[Tensor]:
    """Of pieces (samples,) as they come; a tokenizer that does not stream waits for all of them."""
    if isinstance(codec, Codec) or codec.streams:
        yield from codec.encode_stream(pieces, codebooks)
        return
    wave = torch.cat([torch.zeros(0), *pieces])
    if len(wave) >= codec.hop // codec.model.encoder.stride:
        yield codec.encode(wave)[0][0]


def decode(reader: TokenReader, target: Path | None, named: Named[Codec]) -> None:
    """Writes what tokens sound like as WAV of 16 bits; the file appears whole or not at all.

    Raises:
        InputError: the tokens are of another codec or damaged, or the file cannot be written.
    """
    reader.header.check_model(named.header, reader.name)
    rate, written = named.codec.rate, 0
    with _written(target) as file:
        file.write(wav_header(rate))
        for wave in trimmed(_large(named.codec, target), reader):
            data = (wave * 2**15).round().clip(-(2**15), 2**15 - 1).astype("<i2").tobytes()
            file.write(data)
            file.flush()
            written += len(data)
        if target is not None and written + 36 < ENDLESS:
            file.seek(0)
            file.write(wav_header(rate, written))


def trimmed(codec: Codec, reader: TokenReader) -> Iterator[np.ndarray]:
    """Pieces (samples,) of what tokens sound like, together as long as what was encoded."""
    held, given = np.zeros(0, np.float32), 0
    blocks = (block if codec.codebooks > 1 else block[:, 0] for block in reader.blocks())
    for piece in codec.decode_stream(torch.from_numpy(block) for block in blocks):
        held = np.concatenate([held, piece.numpy()])
        ready = max(0, len(held) - codec.hop)  # what is too long is less than a hop
        if ready:
            yield held[:ready]
        held, given = held[ready:], given + ready
    if reader.samples is not None and reader.samples > given:
        yield held[: reader.samples - given]


def wav_header(rate: int, size: int | None = None) -> bytes:
    """Of mono samples of 16 bits, so many bytes; None where nobody knows yet, and readers read until the end."""
    all_, data = (ENDLESS, ENDLESS) if size is None else (size + 36, size)
    form = struct.pack("<HHIIHH", 1, 1, rate, 2 * rate, 2, 16)
    return b"RIFF" + struct.pack("<I", all_) + b"WAVEfmt \x10\0\0\0" + form + b"data" + struct.pack("<I", data)


@contextlib.contextmanager
def _written(target: Path | None) -> Iterator[BinaryIO]:
    if target is None:
        yield sys.stdout.buffer
        return
    with appearing(target, parents=True) as file:
        yield file
