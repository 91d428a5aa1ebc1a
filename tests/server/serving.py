"""A server in a thread of the test, around a tiny recogniser."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from speechkit.asr.transcriber import Transcriber
from speechkit.streaming.engine import Engine
from speechkit.streaming.pool import Pool, ThreadPool
from speechkit.streaming.server.app import Application
from speechkit.streaming.server.auth import Auth
from speechkit.streaming.server.limits import Limits
from speechkit.streaming.server.live import Model
from speechkit.streaming.server.metrics import Metrics
from speechkit.streaming.server.run import Address, Server, listen, server
from speechkit.text import CharTokenizer
from tests.asr.tiny import SYMBOLS, configuration, recognizer

NO_RULES = {"trailing_s": None, "silence_s": None, "longest_s": None}
TOKEN = "a-token-of-more-than-16-characters"


def make_engine() -> Engine:
    """A tiny one with random weights."""
    return Engine(Transcriber(recognizer(configuration()), CharTokenizer(SYMBOLS)))


def model_of(engine: Engine) -> Model:
    """What the server tells of it."""
    return Model("tiny", engine.rate, tuple(engine.transcriber.latencies_ms), engine.default_ms)


@dataclass
class Running:
    """A server that runs."""

    application: Application
    server: Server
    port: int
    engine: Engine
    thread: threading.Thread

    @property
    def http(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Of its streams."""
        return f"ws://127.0.0.1:{self.port}/v1/stream"

    @property
    def places(self) -> int:
        """Taken."""
        return self.application.hall.places

    def empty(self, seconds: float = 5.0) -> bool:
        """Whether all places become free within some seconds."""
        return eventually(lambda: self.places == 0 and not self.application.hall.lives, seconds)

    def text(self, wave: np.ndarray, latency_ms: float | None = None) -> str:
        """What the model says of a whole recording."""
        return str(self.engine.transcriber.transcribe(wave, latency_ms=latency_ms).text)

    def metric(self, name: str) -> float:
        """Of /metrics, summed over labels."""
        lines = httpx.get(f"{self.http}/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.partition("{")[0].partition(" ")[0] == name)


@contextmanager
def serving(
    engine: Engine,
    tokens: tuple[str, ...] = (),
    pool: Pool | None = None,
    metrics: Metrics | None = None,
    certificate: str | None = None,
    key: str | None = None,
    send_buffer: int | None = None,
    **limits: Any,
) -> Iterator[Running]:
    """A server at a free port until the end of the block."""
    metrics = metrics or Metrics()
    found = Limits(**limits)
    pool = pool or ThreadPool(engine, 8, 2.0, metrics)
    application = Application(pool, model_of(engine), found, Auth(tokens), metrics)
    address = Address(port=0, certificate=certificate, key=key)
    listening = listen(address)
    if send_buffer is not None:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    running = server(application.app, application.hall, address, found)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    port = listening.getsockname()[1]
    try:
        assert eventually(lambda: running.started, 10)
        yield Running(application, running, port, engine, thread)
    finally:
        running.should_exit = running.force_exit = True
        thread.join(10)
        listening.close()
        pool.close()
        assert not thread.is_alive()


def eventually(true: Any, seconds: float = 5.0) -> bool:
    """Whether something becomes true within some seconds."""
    until = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def pcm(wave: np.ndarray) -> bytes:
    """As s16le."""
    return np.clip(np.rint(wave * 32768), -32768, 32767).astype("<i2").tobytes()


def heard(wave: np.ndarray) -> np.ndarray:
    """What remains of (samples,) after `pcm`."""
    return np.frombuffer(pcm(wave), "<i2").astype(np.float32) / 32768


class Talk:
    """A client without any help: sends messages, takes events."""

    def __init__(self, url: str, **options: Any) -> None:
        self._connect = connect(url, compression=None, **options)
        self.socket: ClientConnection = self._connect.__enter__()

    def __enter__(self) -> "Talk":
        return self

    def __exit__(self, *_: object) -> None:
        self._connect.__exit__(None, None, None)

    def config(self, **options: Any) -> dict[str, Any]:
        """Begins; returns what the server answers."""
        self.say(type="config", **({"endpoint": NO_RULES} | options))
        return self.take()

    def say(self, **message: Any) -> None:
        """Sends JSON."""
        self.socket.send(json.dumps(message))

    def audio(self, wave: np.ndarray, size: int = 3200) -> None:
        """Sends s16le in messages of some bytes."""
        data = pcm(wave)
        for start in range(0, len(data), size):
            self.socket.send(data[start : start + size])

    def take(self, timeout: float = 20) -> dict[str, Any]:
        """The next event."""
        found: dict[str, Any] = json.loads(self.socket.recv(timeout))
        return found

    def rest(self) -> list[dict[str, Any]]:
        """All events until the server closes."""
        found = []
        try:
            while True:
                found.append(self.take())
        except ConnectionClosed:
            return found

    def whole(self, wave: np.ndarray, **options: Any) -> list[dict[str, Any]]:
        """A stream from its beginning to its end."""
        self.config(**options)
        self.audio(wave)
        self.say(type="close")
        return self.rest()

    @property
    def closed(self) -> tuple[int | None, str | None]:
        """Code and reason, once the server has closed."""
        return self.socket.close_code, self.socket.close_reason


def texts(events: list[dict[str, Any]]) -> list[str]:
    """Of the finals."""
    return [event["text"] for event in events if event["type"] == "final"]
