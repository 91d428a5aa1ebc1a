"""Prints what is said while it is said: python -m demo.transcribe_stream FOLDER [FILE] [--latency-ms 80]."""

import argparse
import sys
from collections.abc import Iterable, Iterator

import numpy as np

import speechkit
from speechkit import audio
from speechkit.asr.transcriber import Transcriber
from speechkit.errors import InputError

BLOCK_S = 0.08  # seconds of sound handed over at a time: any size gives the same text


def microphone(rate: int) -> Iterator[np.ndarray]:
    """Blocks of (samples,) float32 from the default microphone until Ctrl-C."""
    try:
        import sounddevice
    except (ImportError, OSError) as error:
        raise InputError(f"a microphone needs the extra `mic` and the PortAudio library: {error}") from error
    try:
        with sounddevice.InputStream(samplerate=rate, channels=1, dtype="float32") as source:
            while True:
                yield source.read(round(rate * BLOCK_S))[0][:, 0]
    except KeyboardInterrupt:
        return
    except sounddevice.PortAudioError as error:
        raise InputError(f"there is no microphone to listen to: {error}") from error


def show(text: str) -> None:
    """Rewrites the terminal's line with the text so far, its end where it is too long for a line."""
    line = text if len(text) <= 100 else f"…{text[-99:]}"
    print(f"\r{line:<100}", end="", file=sys.stderr, flush=True)


def transcribe(model: Transcriber, blocks: Iterable[np.ndarray], latency_ms: float) -> str:
    """Streams blocks of (samples,) through a recogniser, shows the text as it grows and returns all of it."""
    stream = model.stream(latency_ms=latency_ms)
    for block in blocks:
        show(stream.push(block).text)
    show("")
    return stream.finish().text


def main(arguments: list[str] | None = None) -> int:
    """The command; 2 where something given cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m demo.transcribe_stream", description=__doc__)
    parser.add_argument("model", help="a release folder, a published .nemo file or a hub id")
    parser.add_argument("file", nargs="?", help="an audio file of any rate; without it, the default microphone")
    parser.add_argument("--latency-ms", type=float, default=80, help="how far the model may look ahead")
    options = parser.parse_args(arguments)
    try:
        model = speechkit.load(options.model)
        blocks = audio.blocks(options.file, model.rate, BLOCK_S) if options.file else microphone(model.rate)
        print("\r" + transcribe(model, blocks, options.latency_ms))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
