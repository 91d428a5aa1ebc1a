"""The client of the streaming server for programs without an event loop."""

import asyncio
import threading
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Self, TypeVar

import numpy as np

from speechkit.streaming.client import AsyncClient, Event

T = TypeVar("T")


class Client:
    """As `AsyncClient`, for programs without an event loop: every call blocks.

    with Client("ws://127.0.0.1:8765/v1/stream") as client:
        for piece in pieces:
            client.send(piece)
            for event in client.events():
                print(event)
        for event in client.finish():
            print(event)

    Args:
        as of `AsyncClient`.
    """

    def __init__(self, url: str, rate: int = 16_000, **arguments: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="speechkit-client")
        self._thread.start()
        self._client = AsyncClient(url, rate, **arguments)

    def __enter__(self) -> Self:
        """As `AsyncClient`'s."""
        try:
            self._do(self._client.__aenter__())
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """As `AsyncClient`'s."""
        self._do(self._client.__aexit__(None, None, None))
        self._stop()

    @property
    def ready(self) -> Event:
        """What the server said at the beginning."""
        return self._client.ready

    def send(self, samples: np.ndarray) -> None:
        """As `AsyncClient.send`."""
        self._do(self._client.send(samples))

    def send_bytes(self, data: bytes) -> None:
        """As `AsyncClient.send_bytes`."""
        self._do(self._client.send_bytes(data))

    def finalize(self) -> None:
        """As `AsyncClient.finalize`."""
        self._do(self._client.finalize())

    def set_latency(self, latency_ms: float) -> None:
        """As `AsyncClient.set_latency`."""
        self._do(self._client.set_latency(latency_ms))

    def set_hotwords(self, phrases: Sequence[str] | Mapping[str, float] | None, weight: float = 2.0) -> None:
        """As `AsyncClient.set_hotwords`."""
        self._do(self._client.set_hotwords(phrases, weight))

    def events(self) -> list[Event]:
        """What came since the last call."""
        return self._do(self._client.waiting())

    def finish(self) -> list[Event]:
        """Ends the stream; the events that were still to come."""
        self._do(self._client.finish())
        return self._do(self._rest())

    async def _rest(self) -> list[Event]:
        return [event async for event in self._client]

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
