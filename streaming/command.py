"""What can be asked of a session from another thread or process: plain values that travel."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

from speechkit.asr.transcriber import Phrases
from speechkit.errors import InputError
from speechkit.streaming.endpoint import EndpointRules
from speechkit.streaming.engine import Engine
from speechkit.streaming.session import Session
from speechkit.streaming.vad import Vad


@dataclass(frozen=True)
class Settings:
    """How a session begins."""

    rate: int | None = None  # of what is pushed, Hz; the model's where none is given
    latency_ms: float | None = None
    rules: EndpointRules = field(default_factory=EndpointRules)
    phrases: Phrases | None = None
    weight: float = 2.0
    vad: bool = False
    again: bool = False  # segments that are over are heard a second time

    def begin(self, engine: Engine) -> Session:
        """The session.

        Raises:
            InputError: the rate, look-ahead, phrases, voice activity detection or second pass cannot be had.
        """
        booster, vad = engine.booster(self.phrases, self.weight), Vad() if self.vad else None
        return Session(engine, self.rate, self.latency_ms, self.rules, booster, vad, self.again)


@dataclass(frozen=True)
class Finalize:
    """Ends the segment."""


@dataclass(frozen=True)
class Finish:
    """Ends the stream."""


@dataclass(frozen=True)
class SetLatency:
    """Changes the look-ahead at the next segment."""

    latency_ms: float


@dataclass(frozen=True)
class SetPhrases:
    """Changes the phrases to favour at the next segment."""

    phrases: Phrases | None
    weight: float = 2.0


Command = Finalize | Finish | SetLatency | SetPhrases


def prepared(command: Command, engine: Engine) -> Callable[[Session], None]:
    """What does it to a session in no time; to prepare it may take a while, in any thread.

    A wish that cannot be met is told as an event, and changes nothing.
    """
    try:
        match command:
            case Finalize():
                return Session.finalize
            case Finish():
                return Session.finish
            case SetLatency(latency_ms):
                return functools.partial(_set_latency, latency_ms=latency_ms)
            case SetPhrases(phrases, weight):
                return functools.partial(Session.set_booster, booster=engine.booster(phrases, weight))
    except InputError as error:
        return functools.partial(Session.refuse, reason=str(error))


def _set_latency(session: Session, latency_ms: float) -> None:
    try:
        session.set_latency(latency_ms)
    except InputError as error:
        session.refuse(str(error))


def obey(session: Session, command: Command) -> None:
    """Does what is asked."""
    prepared(command, session.engine)(session)
