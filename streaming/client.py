"""A client of the streaming server: sends audio, gets events, and comes back where its connection breaks.

async with AsyncClient("ws://127.0.0.1:8765/v1/stream", rate=16_000) as client:
    await client.send(samples)
    await client.finish()
    async for event in client:
        print(event["type"], event.get("text"))
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from speechkit.errors import InputError
from speechkit.streaming.encoding import WIDTHS

Event = dict[str, Any]
MESSAGE = 32_000  # bytes of audio in a message
UNSENT_S, KEPT_S = 1.0, 120.0  # of audio: what may wait to be sent, and what is kept to be sent again
PONG_S = 120.0  # that a ping may wait behind audio, of which the kernel holds megabytes
CONNECT_S, AGAIN_S = 10.0, 0.25  # how long a connection may take to come about; the pause before the second attempt


class ServerError(RuntimeError):
    """The server refused or ended the stream.

    Attributes:
        code: a word for programs, such as ``full``, ``idle``, ``unauthorized``, ``lost``.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class _Item(NamedTuple):
    end: int  # bytes of audio sent with it and before it
    payload: bytes | str


class AsyncClient:
    """One stream.

    Args:
        url: of the server's ``/v1/stream``, ``ws://`` or ``wss://``.
        rate: of the audio, Hz.
        token: where the server wants one.
        options: further values of the protocol's `config`: ``latency_ms``, ``hotwords``, ``endpoint``, ``partials``,
            ``words``, ``channels``, ``second_pass``.
        reconnect: whether to come back after a broken connection, as long as the server keeps the stream.
        ssl: a context for ``wss``; the system's where none is given.
    """

    def __init__(
        self,
        url: str,
        rate: int = 16_000,
        token: str | None = None,
        options: Mapping[str, Any] | None = None,
        reconnect: bool = True,
        ssl: Any = None,
    ) -> None:
        self.url, self.rate, self.reconnect = url, rate, reconnect
        self._config = {"type": "config", "rate": rate, "encoding": "s16le", **(options or {})}
        if token is not None and not (token.isascii() and token.isprintable()):
            raise InputError("the token holds characters that no HTTP header can have")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._ssl = {"ssl": ssl} if ssl is not None else {}
        encoding, channels = str(self._config["encoding"]), int(self._config.get("channels", 1))
        self._sample = WIDTHS.get(encoding, 1) * channels  # bytes
        self._second = rate * self._sample  # bytes; of Opus, far more than there are
        self._plain = encoding in WIDTHS
        self._items: deque[_Item] = deque()
        self._offset = self._sent = 0  # bytes: handed over, and sent on the connection under way
        self._next = 0  # index in `_items` of the next to send
        self._forgotten = 0  # bytes that are not kept any more
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._changed = asyncio.Condition()
        self._seq = 0
        self._failure: Exception | None = None
        self._over = False
        self._task: asyncio.Task[None] | None = None
        self._started: asyncio.Future[Event] | None = None
        self.ready: Event = {}

    async def __aenter__(self) -> Self:
        """Connects; raises ServerError where the server refuses, OSError where there is none."""
        self._started = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run())
        self.ready = await self._started
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves, whatever is still to come."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def session(self) -> str:
        """The stream's id, a secret by which it can be resumed."""
        return str(self.ready.get("session", ""))

    async def send(self, samples: np.ndarray) -> None:
        """(samples,) or (samples, channels), float in [-1, 1] or int16; waits where the server takes no more.

        Raises:
            ServerError: the stream is over.
            InputError: samples are of another shape, or no numbers.
        """
        if self._config["encoding"] != "s16le":
            raise InputError("samples are sent as s16le: hand other encodings to send_bytes")
        channels = self._sample // WIDTHS["s16le"]
        if samples.ndim > 2 or (samples.ndim == 2 and samples.shape[1] != channels):
            raise InputError(f"samples must be (samples, {channels}), got {samples.shape}")
        if samples.dtype != np.int16:
            if not np.isfinite(samples).all():
                raise InputError("these samples contain NaN or Inf")
            samples = np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)
        await self.send_bytes(np.ascontiguousarray(samples).astype("<i2").tobytes())

    async def send_bytes(self, data: bytes) -> None:
        """Audio in the encoding of the options, s16le where none was named; errors as `send`."""
        size = MESSAGE - MESSAGE % self._sample
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            async with self._changed:
                self._offset += len(piece)
                self._items.append(_Item(self._offset, piece))
                self._changed.notify_all()
                await self._changed.wait_for(lambda: self._over or self._offset - self._sent < UNSENT_S * self._second)
            self._check()

    async def finalize(self) -> None:
        """Ends the segment with what was sent."""
        await self._say(type="finalize")

    async def set_latency(self, latency_ms: float) -> None:
        """Changes the look-ahead at the next segment."""
        await self._say(type="set_latency", latency_ms=latency_ms)

    async def set_hotwords(self, phrases: Sequence[str] | Mapping[str, float] | None, weight: float = 2.0) -> None:
        """Changes the phrases to favour at the next segment."""
        given = phrases if phrases is None or isinstance(phrases, Mapping) else list(phrases)
        await self._say(type="hotwords", phrases=given, weight=weight)

    async def keepalive(self) -> None:
        """Tells the server that somebody is there, though nobody speaks."""
        await self._say(type="keepalive")

    async def finish(self) -> None:
        """No more audio comes; the events go on until all is recognised."""
        await self._say(type="close")

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Events until ``done``; raises ServerError where the stream ended otherwise."""
        while (event := await self._events.get()) is not None:
            yield event
        self._check(also_done=False)

    async def waiting(self) -> list[Event]:
        """Events that have come and were not taken; raises ServerError where the stream ended otherwise than well."""
        found = []
        while not self._events.empty():
            event = self._events.get_nowait()
            if event is None:
                self._events.put_nowait(None)  # for whoever asks next
                break
            found.append(event)
        if not found:
            self._check(also_done=False)
        return found

    async def _say(self, **message: Any) -> None:
        self._check()
        async with self._changed:
            self._items.append(_Item(self._offset, json.dumps(message)))
            self._changed.notify_all()

    def _check(self, also_done: bool = True) -> None:
        if self._task is None:
            raise ValueError("this client is not connected: use it in a `with` block")
        if self._failure is not None:
            raise self._failure
        if self._over and also_done:
            raise ServerError("done", "the stream is over")

    # The connections.

    async def _run(self) -> None:
        try:
            await self._connected()
        except (ServerError, OSError, InputError) as error:
            self._failure = error
        except (InvalidURI, ValueError) as error:
            self._failure = InputError(f"{self.url} is no address of a server: {error}")
        finally:
            self._over = True
            if self._started is not None and not self._started.done():
                if self._failure is not None:
                    self._started.set_exception(self._failure)
                else:
                    self._started.cancel()
            self._events.put_nowait(None)
            async with self._changed:
                self._changed.notify_all()

    async def _connected(self) -> None:
        broken: float | None = None
        pause = AGAIN_S
        while True:
            try:
                headers = self._headers
                async with connect(
                    self.url, additional_headers=headers, open_timeout=CONNECT_S, compression=None, max_size=2**22,
                    ping_timeout=PONG_S, **self._ssl,
                ) as socket:  # fmt: skip
                    await self._begin(socket)
                    broken, pause = None, AGAIN_S
                    if await self._talk(socket):
                        return
            except InvalidStatus as error:
                if not self.ready or error.response.status_code not in (502, 503, 504):
                    raise _refused(error) from None
            except (ConnectionClosed, OSError, InvalidHandshake) as error:
                if not self.ready:
                    raise (
                        error if isinstance(error, OSError) else ServerError("lost", f"no connection: {error}")
                    ) from None
            broken = broken or time.monotonic()
            if not self.reconnect or time.monotonic() - broken > float(self.ready.get("resume_s", 0)):
                raise ServerError("lost", "the connection broke and could not be made again")
            await asyncio.sleep(pause)
            pause = min(2 * pause, 4.0)

    async def _begin(self, socket: ClientConnection) -> None:
        resume = {"resume": self.session, "after": self._seq} if self.ready else {}
        await socket.send(json.dumps(self._config | resume))
        ready = json.loads(await socket.recv())
        if ready.get("type") != "ready":
            raise ServerError(ready.get("code", "refused"), ready.get("message", "the server did not begin a stream"))
        received = int(ready["received"]) if self.ready else 0
        if received < self._forgotten:
            raise ServerError("lost", "the server lacks audio that is not kept here any more")
        async with self._changed:
            while self._items and (self._items[0].end < received or self._all_received(received)):
                self._items.popleft()
            self._next, self._sent = 0, received
        if not self.ready and self._started is not None:
            self.ready = ready
            self._started.set_result(ready)

    def _all_received(self, received: int) -> bool:
        return isinstance(self._items[0].payload, bytes) and self._items[0].end <= received

    async def _talk(self, socket: ClientConnection) -> bool:
        """Sends and receives until the stream is over, or the connection: True or False."""
        sender = asyncio.create_task(self._send_all(socket))
        try:
            async for text in socket:
                event = json.loads(text)
                if event["type"] == "error" and event.get("fatal"):
                    raise ServerError(event["code"], event["message"])
                self._seq = max(self._seq, int(event.get("seq", 0)))
                self._forget(event)
                self._events.put_nowait(event)
                if event["type"] == "done":
                    return True
            return False
        except ConnectionClosed:
            return False
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)

    async def _send_all(self, socket: ClientConnection) -> None:
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._next < len(self._items))
                item = self._items[self._next]
                self._next += 1
            payload = item.payload
            if isinstance(payload, bytes) and (known := len(payload) - (item.end - self._sent)) > 0:
                payload = payload[known:]  # the server has its beginning
            await socket.send(payload)
            async with self._changed:
                self._sent = item.end
                self._forget()
                self._changed.notify_all()

    def _forget(self, event: Event | None = None) -> None:
        """Drops what the server has heard for certain, or what is too old to be kept."""
        told = event or {}
        heard = max(float(told.get("end_s") or 0), float(told.get("at_s") or 0)) - 1.0
        safe = max(heard * self._second if self._plain else 0, self._sent - KEPT_S * self._second)
        while self._next > 0 and self._items and self._items[0].end <= safe:
            self._forgotten = self._items.popleft().end
            self._next -= 1


def _refused(error: InvalidStatus) -> ServerError:
    try:
        told = json.loads(error.response.body or b"")["error"]
        return ServerError(str(told["code"]), str(told["message"]))
    except (ValueError, KeyError, TypeError):
        return ServerError("refused", f"the server answers {error.response.status_code} where a stream was asked for")
