"""Prints what is said while it is said: python -m demo.transcribe_stream [FILE] [--model FOLDER]."""

import argparse
import sys
from collections.abc import Iterable, Iterator

import numpy as np

import speechkit
from speechkit import audio
from speechkit.asr.transcriber import Transcriber, TranscriptStream
from speechkit.errors import InputError
from speechkit.startup import status
from speechkit.text import join_words

BLOCK_S = 0.08  # seconds of sound handed over at a time: any size gives the same text
LATENCY_MS = 80.0
WIDTH = 100  # characters of the line that is rewritten


def microphone(rate: int) -> Iterator[np.ndarray]:
    """Blocks of (samples,) float32 from the default microphone."""
    try:
        import sounddevice
    except (ImportError, OSError) as error:
        raise InputError(f"a microphone needs the extra `mic` and the PortAudio library: {error}") from error
    try:
        with sounddevice.InputStream(samplerate=rate, channels=1, dtype="float32") as source:
            while True:
                yield source.read(round(rate * BLOCK_S))[0][:, 0]
    except sounddevice.PortAudioError as error:
        raise InputError(f"there is no microphone to listen to: {error}") from error


def show(stream: TranscriptStream) -> None:
    """Rewrites the terminal's line with the last words, the one that still grows among them."""
    if sys.stderr.isatty():
        text = join_words([word.text for word in stream.settled[-WIDTH // 2 :]] + [stream.open])
        line = text if len(text) <= WIDTH else f"…{text[1 - WIDTH :]}"
        print(f"\r{line:<{WIDTH}}", end="", file=sys.stderr, flush=True)


def transcribe(model: Transcriber, blocks: Iterable[np.ndarray], latency_ms: float | None) -> str:
    """Streams blocks of (samples,) until they end or Ctrl-C; shows the text as it grows and returns all of it."""
    if latency_ms is None and model.latencies_ms:
        latency_ms = max(LATENCY_MS, min(model.latencies_ms))
    stream = model.stream(latency_ms=latency_ms)
    try:
        for block in blocks:
            show(stream.push(block))
    except KeyboardInterrupt:
        pass
    if sys.stderr.isatty():
        print(f"\r{'':<{WIDTH}}\r", end="", file=sys.stderr, flush=True)
    return stream.finish().text


def main(arguments: list[str] | None = None) -> int:
    """The command; 2 where something given cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m demo.transcribe_stream", description=__doc__)
    parser.add_argument("file", nargs="?", help="an audio file of any rate; without it, the default microphone")
    parser.add_argument("--model", help="a release folder, a published .nemo file or a hub id; the packaged one else")
    parser.add_argument("--latency-ms", type=float, help="how far the model may look ahead; 80 where it offers that")
    options = parser.parse_args(arguments)

    def run() -> None:
        model = speechkit.load(options.model)
        blocks = audio.blocks(options.file, model.rate, BLOCK_S) if options.file else microphone(model.rate)
        print(transcribe(model, blocks, options.latency_ms))

    return status(run)


if __name__ == "__main__":
    sys.exit(main())
