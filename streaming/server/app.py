"""The application: where each protocol is found, who is let in, health and metrics."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.websockets import WebSocket

from speechkit.errors import InputError
from speechkit.streaming.adapters.adapter import Adapter
from speechkit.streaming.adapters.deepgram import Deepgram
from speechkit.streaming.adapters.openai_realtime import OpenAIRealtime
from speechkit.streaming.adapters.own import Own
from speechkit.streaming.adapters.rooted import Rooted
from speechkit.streaming.adapters.sherpa import Sherpa
from speechkit.streaming.adapters.vosk import Vosk
from speechkit.streaming.pool import Pool
from speechkit.streaming.server import page
from speechkit.streaming.server.auth import Auth, accepted, subprotocols
from speechkit.streaming.server.connection import Connection
from speechkit.streaming.server.limits import Limits
from speechkit.streaming.server.live import Hall, Model
from speechkit.streaming.server.log import say
from speechkit.streaming.server.metrics import Metrics
from speechkit.streaming.server.upload import Uploads

Make = Callable[[WebSocket], Adapter]
OWN = "/v1/stream"  # path of our own protocol
FAILING = 3  # calls of the model in a row, after which the server says that it is not well
STATUS = {"unauthorized": 401, "full": 503, "draining": 503, "no_worker": 503}


class Application:
    """A server without the HTTP server around it.

    Args:
        pool: computes.
        model: what clients are told of the model.
        limits: what is borne.
        auth: who may come.
        metrics: what the pool's meter is, so that all is in one place.
    """

    def __init__(self, pool: Pool, model: Model, limits: Limits, auth: Auth, metrics: Metrics) -> None:
        self.hall = Hall(pool, model, limits, metrics)
        self.auth, self.limits, self.metrics = auth, limits, metrics
        self.app = FastAPI(title="speechkit", docs_url=None, redoc_url=None, openapi_url=None, lifespan=self._lifespan)
        self.app.add_api_route("/health", self._health, methods=["GET"])
        self.app.add_api_route("/ready", self._ready, methods=["GET"])
        self.app.add_api_route("/metrics", self._metrics, methods=["GET"])
        Uploads(self.hall, auth).add_to(self.app)
        page.add_to(self.app)
        for path, make in self.protocols().items():
            self.app.add_api_websocket_route(path, self._endpoint(make))

    def protocols(self) -> Mapping[str, Make]:
        """Paths and the protocols that are spoken there."""
        longest, rate, name = self.limits.segment_s, self.hall.model.rate, self.hall.model.name
        return {
            OWN: lambda _: Own(longest),
            "/v1/listen": lambda socket: Deepgram(_query(socket), longest),
            "/v1/realtime": lambda _: OpenAIRealtime(longest, name),
            "/vosk": lambda _: Vosk(rate),
            "/sherpa": lambda _: Sherpa(rate),
            "/": lambda _: Rooted(rate),  # where the clients of Vosk and sherpa-onnx look for their servers
        }

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Where somebody else runs the application: streams end with their results when it is to stop."""
        yield
        await self.hall.drain()
        self.hall.pool.close()

    def _endpoint(self, make: Make) -> Callable[[WebSocket], Any]:
        async def endpoint(websocket: WebSocket) -> None:
            owner = self.auth.owner(websocket)
            if owner is None:
                await self._deny(websocket, "unauthorized", "a bearer token is needed, and this is none that is known")
                return
            refusal = self.hall.refusal(resumable=websocket.url.path == OWN)
            if refusal is not None:
                await self._deny(websocket, *refusal)
                return
            self.hall.places += 1
            try:
                adapter = make(websocket)
                await websocket.accept(accepted(subprotocols(websocket)))
            except BaseException as error:
                self.hall.places -= 1
                if isinstance(error, InputError):
                    await self._deny(websocket, "bad_input", str(error))
                    return
                raise
            await Connection(self.hall, websocket, adapter, owner).run()

        return endpoint

    async def _deny(self, websocket: WebSocket, code: str, message: str) -> None:
        self.metrics.refused.labels(code).inc()
        say("refused", code=code, path=websocket.url.path)
        await websocket.send_denial_response(denial(code, message))

    async def _health(self) -> Response:
        well = self.metrics.failing < FAILING and bool(self.hall.pool.alive)
        return JSONResponse({"status": "ok" if well else "degraded"}, 200 if well else 503)

    async def _ready(self) -> Response:
        ready = not self.hall.draining and bool(self.hall.pool.alive)
        state = {"ready": ready, "server": self.hall.name, "streams": self.hall.places, "limit": self.limits.streams}
        return JSONResponse(state, 200 if ready else 503)

    async def _metrics(self, request: Request) -> Response:
        if self.auth.owner(request) is None:
            return denial("unauthorized", "a bearer token is needed, and this is none that is known")
        return Response(self.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _query(socket: WebSocket) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in socket.query_params.multi_items():
        found.setdefault(name, []).append(value)
    return found


def denial(code: str, message: str) -> JSONResponse:
    """What those who are not let in are told."""
    headers = {"retry-after": "5"} if code in ("full", "no_worker") else {}
    if code == "unauthorized":
        headers["www-authenticate"] = "Bearer"
    return JSONResponse({"error": {"code": code, "message": message}}, STATUS.get(code, 400), headers)
