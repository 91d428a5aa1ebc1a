"""`speechkit stream`: recordings or the microphone to a server, texts as they come."""

import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from speechkit.errors import InputError
from speechkit.startup import starting

if TYPE_CHECKING:
    import numpy as np

    from speechkit.streaming.client import AsyncClient

PIECE_S = 0.1
OFF = {"trailing_s": None, "silence_s": None, "longest_s": None}  # the server has a longest of its own


def stream(
    files: Annotated[list[str] | None, typer.Argument(help="Audio files, or - for WAV on standard input.")] = None,
    mic: Annotated[bool, typer.Option("--mic", help="The microphone, until Ctrl-C.")] = False,
    url: Annotated[str, typer.Option(help="The server's address.")] = "ws://127.0.0.1:8765/v1/stream",
    latency_ms: Annotated[float | None, typer.Option(min=0, help="Look-ahead; else the server's.")] = None,
    hotwords: Annotated[str | None, typer.Option(help="Phrases to favour, with commas between them.")] = None,
    segments: Annotated[
        bool | None, typer.Option(help="End a segment where there is silence; without it for --mic alone.")
    ] = None,
    second_pass: Annotated[
        bool,
        typer.Option(
            "--second-pass", help="Hear a segment again, whole, when it is over; an error where the server cannot."
        ),
    ] = False,
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
    if second_pass:
        options["second_pass"] = True
    failed = False
    for name in files or ["microphone"]:
        try:
            source = _microphone() if mic else _recording(name, speed)
            asyncio.run(_stream(url, source, options, _Printer(events, name if files and len(files) > 1 else None)))
        except (InputError, ServerError) as error:
            sentence = f"{url}: {error}" if isinstance(error, ServerError) else str(error)
            if not files or len(files) == 1:
                raise InputError(sentence) from None
            failed = True
            print(f"error: {sentence}", file=sys.stderr)
    if failed:
        raise typer.Exit(2)


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
    from speechkit.streaming.client import AsyncClient, ServerError

    given = {"encoding": source.encoding, **options}
    client = AsyncClient(url, source.rate, os.environ.get("SPEECHKIT_TOKEN"), given)
    try:
        await client.__aenter__()
    except OSError as error:
        raise InputError(f"there is no server at {url}: {error.strerror or error}") from None
    tasks = [asyncio.ensure_future(work) for work in (_send(client, source), _show(client, printer))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        if tasks[0].done() and isinstance(tasks[0].exception(), ServerError):
            await asyncio.wait(tasks)  # the stream is over: what it said is shown
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await client.__aexit__(None, None, None)


async def _show(client: "AsyncClient", printer: _Printer) -> None:
    async for event in client:
        printer.show(event)


async def _send(client: "AsyncClient", source: _Source) -> None:
    from speechkit.streaming.client import ServerError

    try:
        async for piece in source.pieces:
            await client.send_bytes(piece)
        await client.finish()
    except ServerError as error:
        if error.code != "done":
            raise
        raise ServerError("stopped", "the server ended the stream before all was sent: it stops") from None


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
        async for block in _read(blocks):
            yield block.astype("<f4").tobytes()
            sent += len(block) / rate
            if speed:
                await asyncio.sleep(max(0.0, begin + sent / speed - loop.time()))

    return _Source(rate, "f32le", pieces())


async def _read(blocks: "Iterator[np.ndarray]") -> "AsyncIterator[np.ndarray]":
    """What is read in a thread that nobody waits for: standard input may stay silent for ever."""
    loop, taken = asyncio.get_running_loop(), threading.Semaphore(4)
    queue: asyncio.Queue[np.ndarray | Exception | None] = asyncio.Queue()

    def read() -> None:
        last: Exception | None = None
        try:
            for block in blocks:
                taken.acquire()
                loop.call_soon_threadsafe(queue.put_nowait, block)
        except Exception as error:
            last = error
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(queue.put_nowait, last)

    threading.Thread(target=read, daemon=True).start()
    while (block := await queue.get()) is not None:
        if isinstance(block, Exception):
            raise block
        taken.release()
        yield block


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
