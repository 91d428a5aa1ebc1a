"""What a server bears: every queue, message, session and history has a bound."""

from dataclasses import dataclass, fields

from speechkit.errors import InputError


@dataclass(frozen=True)
class Limits:
    """Bounds of a server.

    Raises:
        InputError: one is not over 0.
    """

    streams: int = 64  # at once, those that wait to be resumed included
    message_bytes: int = 262_144  # of a websocket message
    waiting_s: float = 2.0  # of audio that a stream may have waiting; no more is read from its socket then
    idle_s: float = 30.0  # without a message
    send_s: float = 10.0  # that a client may take to read what it was sent
    ping_s: float = 20.0  # between pings
    pong_s: float = 60.0  # that a client may take to answer one
    resume_s: float = 30.0  # that a stream is kept for a client that is gone
    segment_s: float = 30.0  # the longest that a client may ask for
    stream_s: float | None = None  # of audio in a stream
    history: int = 256  # events kept for a client that comes back
    upload_bytes: int = 104_857_600  # of a file over HTTP
    upload_s: float = 3600.0  # of audio in it
    drain_s: float = 5.0  # that streams have to end when the server is to stop

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not value > 0:
                raise InputError(f"limits.{field.name} must be over 0, got {value}")
