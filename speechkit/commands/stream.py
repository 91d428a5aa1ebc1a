"""`speechkit stream`: recordings or the microphone to a server, texts as they come."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from speechkit.errors import InputError
from speechkit.startup import starting

if TYPE_CHECKING:
    from speechkit.streaming.client import AsyncClient

PIECE_S = 0.1
OFF = {"trailing_s": None, "silence_s": None}


def stream(
    files: Annotated[list[str] | None, typer.Argument(help="Audio files, or - for WAV on standard input.")] = None,
    mic: Annotated[bool, typer.Option("--mic", help="The microphone, until Ctrl-C.")] = False,
    url: Annotated[str, typer.Option(help="The server's address.")] = "ws://127.0.0.1:8765/v1/stream",
    latency_ms: Annotated[float | None, typer.Option(min=0, help="Look-ahead; else the server's.")] = None,
    hotwords: Annotated[str | None, typer.Option(help="Phrases to favour, with commas between them.")] = None,
    segments: Annotated[
        bool | None, typer.Option(help="End a segment where there is silence; without it for --mic alone.")
    ] = None,
    speed: Annotated[float, typer.Option(min=0, help="Times real time; 0: as fast as the server takes it.")] = 1.0,
    events: Annotated[bool, typer.Option("--json", help="Every event of the protocol, a JSON object a line.")] = False,
) -> None:
    """Send audio to a server and print what is said.

    A token is read from the variable SPEECHKIT_TOKEN. On a terminal the line grows while somebody speaks.
    """
    if bool(files) == mic:
        raise InputError("name audio files, or --mic")
    with starting():
        from speechkit.streaming.client import ServerError
    options: dict[str, Any] = {"latency_ms": latency_ms} if latency_ms is not None else {}
    if hotwords:
        options["hotwords"] = [phrase.strip() for phrase in hotwords.split(",") if phrase.strip()]
    if not (mic if segments is None else segments):
        options["endpoint"] = OFF
    try:
        for name in files or ["microphone"]:
            source = _microphone() if mic else _recording(name, speed)
            asyncio.run(_stream(url, source, options, _Printer(events, name if files and len(files) > 1 else None)))
    except ServerError as error:
        raise InputError(f"{url}: {error}") from None
    except OSError as error:
        raise InputError(f"there is no server at {url}: {error.strerror or error}") from None


class _Source:
    """Samples and their rate; the pieces come at the pace at which they are to be sent."""

    def __init__(self, rate: int, encoding: str, pieces: AsyncIterator[bytes]) -> None:
        self.rate, self.encoding, self.pieces = rate, encoding, pieces


class _Printer:
    """Finals, a line each; on a terminal, partials in the line that they will be."""

    def __init__(self, events: bool, name: str | None) -> None:
        self.events, self.lead = events, f"{name}: " if name else ""
        self._width = 0

    def show(self, event: dict[str, Any]) -> None:
        if self.events:
            print(json.dumps(event, ensure_ascii=False), flush=True)
        elif event["type"] == "final":
            self._line(event["text"], "\n")
        elif event["type"] == "partial" and sys.stdout.isatty():
            columns = os.get_terminal_size().columns - 1
            self._line(event["text"][-max(10, columns - len(self.lead)) :], "")
        elif event["type"] == "error":
            print(f"warning: {event['message']}", file=sys.stderr)

    def _line(self, text: str, end: str) -> None:
        line = self.lead + text
        wipe = "\r" if self._width else ""
        print(wipe + line + " " * (self._width - len(line)), end=end, flush=True)
        self._width = 0 if end else len(line)


async def _stream(url: str, source: _Source, options: dict[str, Any], printer: _Printer) -> None:
    from speechkit.streaming.client import AsyncClient

    given = {"encoding": source.encoding, **options}
    async with AsyncClient(url, source.rate, os.environ.get("SPEECHKIT_TOKEN"), given) as client:
        sender = asyncio.create_task(_send(client, source))
        try:
            async for event in client:
                printer.show(event)
            await sender
        finally:
            sender.cancel()


async def _send(client: "AsyncClient", source: _Source) -> None:
    async for piece in source.pieces:
        await client.send_bytes(piece)
    await client.finish()


def _recording(name: str, speed: float) -> _Source:
    from pathlib import Path

    from speechkit import audio
    from speechkit.commands.sources import Recording, expanded

    recording = Recording(name, name if name == "-" else str(expanded(name)), Path(name))
    rate = 16_000 if name == "-" else audio.info(recording.path).rate
    blocks = recording.blocks(rate, PIECE_S, None)

    async def pieces() -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        begin, sent = loop.time(), 0.0
        while (block := await asyncio.to_thread(next, blocks, None)) is not None:
            yield block.astype("<f4").tobytes()
            sent += len(block) / rate
            if speed:
                await asyncio.sleep(max(0.0, begin + sent / speed - loop.time()))

    return _Source(rate, "f32le", pieces())


def _microphone() -> _Source:
    try:
        import sounddevice
    except (ImportError, OSError) as error:
        raise InputError(
            f"the microphone needs the extra mic, pip install 'speechkit[mic]', and PortAudio ({error})"
        ) from None
    try:
        rate = round(sounddevice.query_devices(kind="input")["default_samplerate"])
    except (sounddevice.PortAudioError, ValueError) as error:
        raise InputError(f"there is no microphone: {error}") from None

    async def pieces() -> AsyncIterator[bytes]:
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[bytes | None]()

        def heard(data: Any, *_: object) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, bytes(data))

        recording = sounddevice.RawInputStream(rate, round(PIECE_S * rate), channels=1, dtype="int16", callback=heard)
        with recording, _until_ctrl_c(lambda: queue.put_nowait(None)):
            while (piece := await queue.get()) is not None:
                yield piece

    return _Source(rate, "s16le", pieces())


@contextmanager
def _until_ctrl_c(stop: Callable[[], None]) -> Iterator[None]:
    """Calls `stop` at the first Ctrl-C, so that the last words are still heard; the second one ends the command."""
    loop = asyncio.get_running_loop()

    def first() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        stop()

    with suppress(NotImplementedError):  # on Windows Ctrl-C ends the command at once
        loop.add_signal_handler(signal.SIGINT, first)
    try:
        yield
    finally:
        with suppress(NotImplementedError):
            loop.remove_signal_handler(signal.SIGINT)
