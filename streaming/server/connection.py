"""One websocket: what its client says becomes actions, what its session says becomes texts."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from speechkit.errors import InputError
from speechkit.streaming.adapters.adapter import Adapter, Answer, Audio, Begin, Poll, RefusalError, Resume
from speechkit.streaming.event import Done
from speechkit.streaming.pool import LostError
from speechkit.streaming.server.live import Hall, Live
from speechkit.streaming.server.log import say

BROKEN = (1005, 1006)  # close codes where nobody said good-bye: the client may come back
TRANSPORT = "speechkit.transport"  # of a connection, where our own HTTP server put it into the scope


class _GoneError(Exception):
    """The client left; whether it may come back."""

    def __init__(self, keep: bool) -> None:
        super().__init__(keep)
        self.keep = keep


class _DeafError(Exception):
    """What is sent reaches nobody."""


class Connection:
    """A client that was admitted.

    Args:
        hall: has its session.
        socket: accepted.
        adapter: speaks the client's protocol.
        owner: of the token that it came with.
    """

    def __init__(self, hall: Hall, socket: WebSocket, adapter: Adapter, owner: bytes) -> None:
        self.hall, self.socket, self.adapter, self.owner = hall, socket, adapter, owner
        self.limits = hall.limits
        self.live: Live | None = None
        self.told = 0  # number of the last event that was sent
        self.over = False  # whether all is said
        self._place = True  # whether a place is taken that no session has yet
        self._writing = asyncio.Lock()
        self._writer: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Talks to the client until one of the two is done; the place that was taken is free afterwards."""
        reader = asyncio.current_task()
        keep = False
        try:
            await self._talk()
        except _GoneError as gone:
            keep = gone.keep
        except asyncio.CancelledError:  # by the writer, when all is said, or at the server's end: this task ends now
            if reader is not None:
                reader.uncancel()
        finally:
            self._end(keep)

    async def _talk(self) -> None:
        try:
            await self._act(self.adapter.begin())
            while True:
                await self._act(self.adapter.hear(await self._message()))
        except RefusalError as refusal:
            await self._refuse(refusal)
        except InputError as error:
            await self._refuse(RefusalError(1007, "bad_input", str(error)))
        except LostError as error:
            await self._refuse(RefusalError(1013, "lost", str(error)))
        except _DeafError:
            while True:  # what the client said last tells whether it comes back
                await self._message()
        except _GoneError:
            raise
        except Exception as error:
            say("connection_failed", 40, error=repr(error))
            await self._refuse(RefusalError(1011, "internal", "something went wrong in the server"))

    def _end(self, keep: bool) -> None:
        if self._writer is not None:
            self._writer.cancel()
        if self.live is not None:
            self.hall.leave(self.live, self, keep and self.adapter.resumable and not self.hall.draining)
        if self._place:
            self.hall.places -= 1
            self._place = False

    # What the client says.

    async def _message(self) -> str | bytes:
        quiet = self.live is not None and self.live.finishing  # the client waits for us
        try:
            async with asyncio.timeout(None if quiet else self.limits.idle_s):
                message: Any = await self.socket.receive()
        except TimeoutError:
            raise RefusalError(1008, "idle", f"nothing came in {self.limits.idle_s:g} s") from None
        if message["type"] == "websocket.disconnect":
            farewell = "reason" in message  # of a close frame, which may come without a code
            raise _GoneError(message.get("code", 1006) in BROKEN and not farewell)
        data: bytes | None = message.get("bytes")
        return data if data is not None else message["text"]

    async def _act(self, actions: Sequence[object]) -> None:
        for action in actions:
            match action:
                case Begin(settings, decoder):
                    live = await self.hall.open(self.adapter.name, self.owner, settings, decoder)
                    await self._attach(live, resumed=False)
                case Resume(session, after):
                    await self._attach(self.hall.find(session, after, self.owner), resumed=True, after=after)
                case Answer(texts):
                    await self._send(texts)
                case Poll():
                    await self._send([self.adapter.polled()])
                case Audio(data):
                    if self.live is not None:
                        await self.live.push(data)
                case _:
                    if self.live is not None:
                        await self.live.ask(action)  # type: ignore[arg-type]

    async def _attach(self, live: Live, resumed: bool, after: int = 0) -> None:
        if live.forget is not None:
            live.forget.cancel()
        before = live.attached if isinstance(live.attached, Connection) else None
        if before is not None:
            before._lose()
        live.attached, self.live, self.told = self, live, after
        self.hall.places -= resumed  # the session has one of its own
        self._place = False
        async with live.order:  # what the connection before handed over last comes first, and is received
            ready = self.adapter.opened(live, resumed)
        await self._send(ready)
        if self.live is not None:  # nobody else has it by now
            self._writer = asyncio.create_task(self._write(live, asyncio.current_task()))
        if before is not None:
            await before._close(1008, "another connection has this session now")

    def _lose(self) -> None:
        """Another connection has the session."""
        if self.live is not None:
            self.live.told_to = None
        self.live = None
        if self._writer is not None:
            self._writer.cancel()

    # What the session says.

    async def _write(self, live: Live, reader: "asyncio.Task[Any] | None") -> None:
        live.told_to = self.told
        try:
            await self._tell_all(live)
        except RefusalError as refusal:
            self.hall.end(live, refusal.code)
            await self._refuse(refusal)
        except _DeafError:
            return  # the reader sees it too, and the client may come back
        finally:
            if live.attached in (self, None):  # nobody else has it by now
                live.told_to = None
        self.over = True
        if reader is not None:
            reader.cancel()

    async def _tell_all(self, live: Live) -> None:
        while True:
            live.changed.clear()
            live.check(self.told)
            for number, event in live.since(self.told):
                self.told = number
                await self._send(self.adapter.tell(number, event))
                live.told_to = number
                if isinstance(event, Done):
                    self.hall.end(live, "done")
                    await self._close(1001 if self.hall.draining else 1000, "")
                    return
            if live.over:
                reason = _reason(live)
                self.hall.end(live, reason.code)
                await self._refuse(reason)
                return
            await live.changed.wait()

    async def _send(self, texts: Sequence[str]) -> None:
        async with self._writing:
            for text in texts:
                try:
                    async with asyncio.timeout(self.limits.send_s):
                        await self.socket.send_text(text)
                except TimeoutError:
                    raise RefusalError(1008, "slow", f"the client read nothing in {self.limits.send_s:g} s") from None
                except (WebSocketDisconnect, RuntimeError):  # nobody is there, or it was closed by the other task
                    raise _DeafError from None

    async def _refuse(self, refusal: RefusalError) -> None:
        self.hall.metrics.refused.labels(refusal.code).inc()
        label = self.live.label if self.live is not None else None
        say("connection_refused", 30, session=label, code=refusal.code)  # its sentence may quote the client
        if refusal.code == "slow":
            self._abort()  # what was sent is not read, and neither would be a farewell
            return
        with contextlib.suppress(RefusalError, _DeafError):
            await self._send(self.adapter.fail(refusal))
        await self._close(refusal.close, refusal.message)

    def _abort(self) -> None:
        transport = self.socket.scope.get("extensions", {}).get(TRANSPORT)
        if transport is not None:
            transport.abort()

    async def _close(self, code: int, reason: str) -> None:
        if self.socket.application_state != WebSocketState.CONNECTED:
            return
        short = reason.encode()[:120].decode("utf-8", "ignore")  # a close frame has room for no more
        with contextlib.suppress(TimeoutError, WebSocketDisconnect, RuntimeError):
            async with asyncio.timeout(self.limits.send_s):
                await self.socket.close(code, short)


def _reason(live: Live) -> RefusalError:
    """Why a session ended before its time."""
    if isinstance(live.error, InputError):
        return RefusalError(1007, "bad_input", str(live.error))
    if isinstance(live.error, LostError):
        return RefusalError(1011, "lost", f"{live.error}: begin anew")
    return RefusalError(1011, "internal", "the model failed for this stream")
