"""HTTP: OpenAI's `/v1/audio/transcriptions` and `/v1/models`, for files of any length in bounded memory."""

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from fastapi import FastAPI
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from speechkit import audio
from speechkit.errors import InputError
from speechkit.reader import open_source
from speechkit.streaming.adapters.adapter import RefusalError
from speechkit.streaming.command import Finish, Settings
from speechkit.streaming.encoding import Pcm
from speechkit.streaming.event import Done, Event, Final, Partial
from speechkit.streaming.pool import LostError
from speechkit.streaming.server.answers import FORMATS, answer, server_sent
from speechkit.streaming.server.auth import Auth
from speechkit.streaming.server.live import Hall, Live
from speechkit.streaming.server.log import say
from speechkit.text import join_words, space_between

LEAST_RATE = 8_000  # bytes a second: whoever sends less holds a place for nothing
TYPES = {401: "invalid_request_error", 503: "server_error", 500: "server_error"}


class RequestError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass(frozen=True)
class Order:
    """What a request wants."""

    file: BinaryIO
    shape: str  # response_format
    stream: bool
    words: bool  # in verbose_json


class Uploads:
    """The endpoints.

    Args:
        hall: has the sessions; a request takes a place like any stream.
        auth: who may come.
    """

    def __init__(self, hall: Hall, auth: Auth) -> None:
        self.hall, self.auth, self.limits = hall, auth, hall.limits

    def add_to(self, app: FastAPI) -> None:
        """Adds the routes."""
        app.add_api_route("/v1/audio/transcriptions", self._guarded(self._transcribe), methods=["POST"])
        app.add_api_route("/v1/models", self._guarded(self._models), methods=["GET"])
        app.add_api_route("/v1/models/{name:path}", self._guarded(self._model), methods=["GET"])

    def _guarded(self, endpoint: Callable[[Request], Any]) -> Callable[[Request], Any]:
        async def guarded(request: Request) -> Response:
            try:
                if self.auth.owner(request) is None:
                    raise RequestError(401, "unauthorized", "a bearer token is needed, and this is none that is known")
                found: Response = await endpoint(request)
                return found
            except RequestError as failure:
                self.hall.metrics.refused.labels(failure.code).inc()
                return error(failure)

        return guarded

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._described()]})

    async def _model(self, request: Request) -> Response:
        if request.path_params["name"] != self.hall.model.name:
            raise RequestError(404, "model_not_found", "there is no such model here: /v1/models lists what there is")
        return JSONResponse(self._described())

    def _described(self) -> dict[str, Any]:
        return {"id": self.hall.model.name, "object": "model", "created": 0, "owned_by": "speechkit"}

    async def _transcribe(self, request: Request) -> Response:
        refusal = self.hall.refusal()
        if refusal is not None:
            raise RequestError(503, *refusal)
        self.hall.places += 1
        session: Live | None = None
        try:
            form = await self._form(request)
            order = _order(form)
            await asyncio.to_thread(self._check_length, order.file)
            session = await self._open()
            if order.stream:
                finish = functools.partial(self._finish, session, form)
                return _Told(self._told(session, order), finish, self.limits.send_s)
            try:
                finals, seconds = await self._finals(session, order, request)
                return answer(finals, seconds, order.shape, order.words)
            finally:
                await self._finish(session, form)
        except LostError as lost:
            raise RequestError(503, "lost", str(lost)) from None
        except RefusalError as refused:
            raise RequestError(413, refused.code, refused.message) from None
        except InputError as broken:
            raise RequestError(400, "bad_audio", str(broken)) from None
        except RequestError:
            raise
        except Exception as failure:
            say("request_failed", 40, error=repr(failure))
            raise RequestError(500, "internal", "something went wrong in the server") from None
        finally:
            if session is None:
                self.hall.places -= 1

    async def _finish(self, session: Live, form: FormData) -> None:
        self.hall.end(session, "done" if session.error is None and session.over else "left")
        await form.close()

    async def _open(self) -> Live:
        settings = Settings(rate=self.hall.model.rate)
        session = await self.hall.open("http", b"", settings, Pcm())
        session.attached = self
        return session

    async def _form(self, request: Request) -> FormData:
        """The form, of which no more is read than may come."""
        most = self.limits.upload_bytes
        too_much = RequestError(413, "too_large", f"a request may have {most} bytes")
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length) > most:
            raise too_much
        if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            raise RequestError(400, "bad_request", "the request must be multipart/form-data with a part `file`")
        come, begin = 0, time.monotonic()

        async def limited() -> Any:
            nonlocal come
            try:
                async with asyncio.timeout(self.limits.idle_s):
                    message = await request.receive()
            except TimeoutError:
                raise RequestError(408, "idle", f"nothing came in {self.limits.idle_s:g} s") from None
            come += len(message.get("body", b""))
            if come > most:
                raise too_much
            if time.monotonic() - begin > self.limits.idle_s + come / LEAST_RATE:
                raise RequestError(408, "slow", f"less than {LEAST_RATE} bytes a second came")
            return message

        try:
            return await Request(request.scope, limited).form(max_files=1, max_fields=50)
        except ClientDisconnect:
            raise RequestError(400, "left", "the client left") from None
        except MultiPartException as broken:
            raise RequestError(400, "bad_request", f"the form cannot be read: {broken.message}") from None
        except RequestError:
            raise
        except Exception as broken:
            detail = getattr(broken, "detail", None)
            if detail is None:
                raise
            raise RequestError(400, "bad_request", f"the form cannot be read: {detail}") from None

    def _check_length(self, file: BinaryIO) -> None:
        """By the header alone, where it says: an hour of silence is 181 kB of FLAC."""
        with open_source(file) as reader:
            if reader.sized and reader.info.seconds > self.limits.upload_s:
                raise self._too_long()
        file.seek(0)

    def _too_long(self) -> RequestError:
        return RequestError(413, "too_long", f"a file may have {self.limits.upload_s:g} s of audio")

    async def _events(self, session: Live, order: Order) -> AsyncIterator[Event]:
        """Everything that is said of a file, while it is read."""
        feeding = asyncio.create_task(self._feed(session, order.file))
        session.told_to = 0
        try:
            while True:
                session.changed.clear()
                over = session.over  # asked first: what was said until then is there now
                for number, event in session.since(session.told_to):
                    yield event
                    session.told_to = number
                if over or (feeding.done() and feeding.exception() is not None):
                    break
                waiting = asyncio.create_task(session.changed.wait())
                await asyncio.wait({waiting, *(() if feeding.done() else (feeding,))}, return_when="FIRST_COMPLETED")
                waiting.cancel()
            if feeding.done():
                feeding.result()
            if session.error is not None:
                raise session.error
        finally:
            feeding.cancel()

    async def _feed(self, session: Live, file: BinaryIO) -> None:
        rate, fed = self.hall.model.rate, 0
        pieces: Iterator[np.ndarray] = await asyncio.to_thread(audio.blocks, file, rate)
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            fed += len(piece)
            if fed > self.limits.upload_s * rate:
                raise self._too_long()
            await session.feed(piece)
            if session.finishing:  # the server stops: what is there so far is not the whole
                raise RequestError(503, "draining", "this server is about to stop: try another one")
        session.do(Finish())

    async def _finals(self, session: Live, order: Order, request: Request) -> tuple[list[Final], float]:
        """All that was said, and how long the file is in seconds."""
        finals: list[Final] = []
        seconds = 0.0
        async for event in self._events(session, order):
            if isinstance(event, Final):
                finals.append(event)
            if isinstance(event, Done):
                seconds = event.seconds
            if await request.is_disconnected():
                raise RequestError(400, "left", "the client left")
        return finals, seconds

    async def _told(self, session: Live, order: Order) -> AsyncIterator[str]:
        """Server-sent events."""
        said = ""
        texts: list[str] = []
        try:
            async for event in self._events(session, order):
                if isinstance(event, Partial | Final):
                    new, said = event.text[len(said) :], event.text
                    lead = space_between(texts[-1], new) if texts and said == new else ""
                    if new:
                        yield server_sent("transcript.text.delta", delta=lead + new)
                    if isinstance(event, Final):
                        texts.append(event.text)
                        said = ""
            yield server_sent("transcript.text.done", text=join_words(texts))
        except (RequestError, InputError, LostError, RefusalError) as broken:
            code = broken.code if isinstance(broken, RequestError | RefusalError) else "bad_audio"
            yield server_sent("error", error={"message": str(broken), "type": "invalid_request_error", "code": code})


class _Told(StreamingResponse):
    """Server-sent events, with something to be done after them, also where nobody was there to take the first."""

    def __init__(self, told: AsyncIterator[str], finish: Callable[[], Awaitable[None]], send_s: float) -> None:
        super().__init__(told, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._finish, self._send_s = finish, send_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def limited(message: Message) -> None:
            async with asyncio.timeout(self._send_s):
                await send(message)

        try:
            await super().__call__(scope, receive, limited)
        finally:
            await self._finish()


def error(failure: RequestError) -> JSONResponse:
    """As OpenAI writes errors."""
    kind = TYPES.get(failure.status, "invalid_request_error")
    told = {"message": failure.message, "type": kind, "param": None, "code": failure.code}
    headers = {"www-authenticate": "Bearer"} if failure.status == 401 else {}
    return JSONResponse({"error": told}, failure.status, headers)


def _order(form: FormData) -> Order:
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise RequestError(400, "bad_request", "the form has no part `file` with a file")
    shape = str(form.get("response_format") or "json")
    if shape not in FORMATS:
        raise RequestError(
            400, "bad_request", f"response_format must be one of {', '.join(FORMATS)}, got {shape[:40]!r}"
        )
    wanted = {
        str(value) for name in ("timestamp_granularities[]", "timestamp_granularities") for value in form.getlist(name)
    }
    return Order(file.file, shape, str(form.get("stream", "")).lower() in ("true", "1"), "word" in wanted)
