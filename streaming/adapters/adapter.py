"""What a wire protocol has to say to the server's loop, and what it is told."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from speechkit.asr.transcriber import Phrases
from speechkit.errors import InputError
from speechkit.streaming.command import Command, Settings
from speechkit.streaming.encoding import Decoder
from speechkit.streaming.event import Event

MOST_PHRASES, LONGEST_PHRASE = 1000, 200  # characters


class RefusalError(Exception):
    """A connection ends, and why: a close code of RFC 6455, a word for programs, a sentence for people."""

    def __init__(self, close: int, code: str, message: str) -> None:
        super().__init__(message)
        self.close, self.code, self.message = close, code, message


@dataclass(frozen=True)
class Begin:
    """The session can be opened."""

    settings: Settings
    decoder: Decoder


@dataclass(frozen=True)
class Resume:
    """The client comes back to a session."""

    session: str
    after: int  # the number of the last event that it has


@dataclass(frozen=True)
class Audio:
    """Bytes of audio in the encoding of the session."""

    data: bytes


@dataclass(frozen=True)
class Answer:
    """Texts that are sent at once."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Poll:
    """The client waits for one answer to what it sent: `Adapter.polled` gives it."""


Action = Begin | Resume | Audio | Command | Answer | Poll


class About(Protocol):
    """What protocols tell of a server and a session."""

    @property
    def id(self) -> str: ...
    @property
    def latency_ms(self) -> float: ...
    @property
    def latencies_ms(self) -> Sequence[float]: ...
    @property
    def second_pass(self) -> bool: ...
    @property
    def rate(self) -> int: ...
    @property
    def received(self) -> int: ...
    @property
    def model(self) -> str: ...
    @property
    def resume_s(self) -> float: ...
    @property
    def server(self) -> str: ...


class Adapter(ABC):
    """One connection's side of a protocol, without I/O; subclasses say what they do otherwise.

    Attributes:
        name: in metrics and logs.
        resumable: whether a client can come back after its connection broke.
    """

    name = "adapter"
    resumable = False

    def begin(self) -> Sequence[Action]:
        """What follows from the handshake alone."""
        return ()

    @abstractmethod
    def hear(self, message: str | bytes) -> Sequence[Action]:
        """What a message asks for; raises RefusalError or InputError where it makes no sense."""

    def opened(self, about: About, resumed: bool) -> Sequence[str]:
        """Texts that tell of the session's beginning."""
        return ()

    @abstractmethod
    def tell(self, number: int, event: Event) -> Sequence[str]:
        """Texts for an event, of which numbers rise from 1."""

    def polled(self) -> str:
        """The answer that a `Poll` waits for."""
        return ""

    def fail(self, refusal: RefusalError) -> Sequence[str]:
        """Texts before the connection is closed for a reason."""
        return ()


def number(value: object, name: str) -> float:
    """A number of a message.

    Raises:
        InputError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:  # also NaN
        raise InputError(f"{name} must be a number, got {str(value)[:40]!r}")
    return float(value)


def checked_phrases(phrases: Sequence[str] | Mapping[str, float] | None) -> Phrases | None:
    """Phrases to favour, or phrases with weights of their own; None where there are none.

    Raises:
        InputError: they are too many, or one is too long.
    """
    if not phrases:
        return None
    if len(phrases) > MOST_PHRASES or any(len(phrase) > LONGEST_PHRASE for phrase in phrases):
        raise InputError(f"there can be at most {MOST_PHRASES} phrases, of at most {LONGEST_PHRASE} characters")
    return list(phrases.items()) if isinstance(phrases, Mapping) else list(phrases)
