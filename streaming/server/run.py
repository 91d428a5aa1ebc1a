"""uvicorn around the application: signals that drain, sockets that notice dead peers, TLS."""

import asyncio
import functools
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from speechkit.errors import InputError
from speechkit.streaming.server.connection import TRANSPORT
from speechkit.streaming.server.limits import Limits
from speechkit.streaming.server.live import Hall
from speechkit.streaming.server.log import say

REQUEST_S = 10.0  # that a client may take to ask for something
RECEIVE_BYTES = 262_144  # of a connection, in the kernel, which would take 32 MB of audio that nobody hears yet


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    host: str = "127.0.0.1"
    port: int = 8765
    certificate: str | None = None  # PEM files
    key: str | None = None


class _Http(H11Protocol):
    """Lets nobody stay who asks for nothing, or never comes to the end of it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._letting_go = self.loop.call_later(REQUEST_S, self._let_go)

    def on_response_complete(self) -> None:
        """As uvicorn's; the next request may take as long as the first."""
        super().on_response_complete()
        self._letting_go.cancel()
        self._letting_go = self.loop.call_later(REQUEST_S, self._let_go)

    def _let_go(self) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self.transport.get_protocol() is self:  # no request under way, and no websocket
            self.transport.abort()


class _Protocol(WebSocketsSansIOProtocol):
    """Lets the application abort a connection whose client reads nothing, and deny one without an error in the log."""

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        if self.conn.state.name != "CLOSED" and hasattr(self, "scope"):
            extensions: Any = self.scope["extensions"]
            extensions[TRANSPORT] = self.transport

    async def send(self, message: Any) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True

    def data_received(self, data: bytes) -> None:
        self._heard_at = self.loop.time()
        super().data_received(data)

    def keepalive_timeout(self) -> None:
        """As uvicorn's, but whoever sends is alive, though the pong waits behind audio that is not read yet."""
        if self.read_paused or self._heard_at > self.ping_sent_at:
            self.pong_timer = self.pending_ping_payload = None
            self.schedule_ping()
            return
        super().keepalive_timeout()

    def send_receive_event_to_app(self) -> None:
        """As uvicorn's, which has an error in the log for every text that is not UTF-8, and fails after some."""
        try:
            if self.curr_msg_data_type == "text" and not self.close_sent:
                b"".join(self.frames).decode()
        except UnicodeDecodeError:
            self.frames = []
            self.conn.fail(1007, "a text must be UTF-8")
            self.handle_parser_exception()
            return
        super().send_receive_event_to_app()


class Server(uvicorn.Server):
    """Ends streams with their results at the first SIGTERM or Ctrl-C, at once at the second."""

    def __init__(self, config: uvicorn.Config, hall: Hall) -> None:
        super().__init__(config)
        self.hall = hall
        self.announce: Callable[[], None] = lambda: None  # called when it serves, and signals are heard
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self.announce()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal."""
        if self._loop is None or self._draining is not None or self.hall.draining:
            self.should_exit = self.force_exit = True
            return
        self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._drained())

    async def _drained(self) -> None:
        try:
            await self.hall.drain()
        finally:
            self.should_exit = True


def listen(address: Address) -> socket.socket:
    """A listening socket.

    Raises:
        InputError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # also for those that are accepted
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000)
        found.bind((address.host, address.port))
        found.listen(1024)
    except (OSError, OverflowError) as error:
        found.close()
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot listen at {address.host}:{address.port}: {reason}") from None
    return found


def server(app: Any, hall: Hall, address: Address, limits: Limits) -> Server:
    """The server, not yet running; raises InputError where the certificate cannot be used."""
    config = uvicorn.Config(
        app, log_config=None, log_level="warning", access_log=False,  # at info it logs addresses, with what is in them
        http=_Http, ws=_Protocol, ws_max_size=limits.message_bytes,
        ws_ping_interval=limits.ping_s, ws_ping_timeout=limits.pong_s, ws_per_message_deflate=False,
        lifespan="off", server_header=False, timeout_graceful_shutdown=1, timeout_keep_alive=5,
        ssl_certfile=address.certificate, ssl_keyfile=address.key,
    )  # fmt: skip
    check_certificate(address)
    config.load()
    return Server(config, hall)


def check_certificate(address: Address) -> None:
    """Raises InputError where the certificate cannot be used."""
    if address.certificate is None:
        return
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(address.certificate, address.key)
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"the certificate {address.certificate} cannot be used: {error}") from None


def _announce(address: Address, port: int, notes: Sequence[str]) -> None:
    say("listening", host=address.host, port=port, tls=address.certificate is not None)
    host = f"[{address.host}]" if ":" in address.host else address.host
    kind = "s" if address.certificate else ""
    print(f"listening at http{kind}://{host}:{port}, streams at ws{kind}://{host}:{port}/v1/stream", flush=True)
    print(f"a page for the microphone: http{kind}://{host}:{port}/", flush=True)
    for note in notes:
        print(note, flush=True)


def serve(app: Any, hall: Hall, address: Address, limits: Limits, notes: Sequence[str] = ()) -> None:
    """Serves until a signal comes; says where, and what else is to be known."""
    try:
        listening = listen(address)
    except InputError:
        hall.pool.close()
        raise
    try:
        running = server(app, hall, address, limits)
        running.announce = functools.partial(_announce, address, listening.getsockname()[1], notes)
        running.run(sockets=[listening])
    finally:
        listening.close()
        hall.pool.close()
        say("stopped")
