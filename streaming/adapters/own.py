"""speechkit's own protocol, as docs/protocol.md describes it: JSON for control and events, binary for audio."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from speechkit.asr.decoding.words import Word
from speechkit.streaming import command, opus
from speechkit.streaming.adapters.adapter import (
    About,
    Action,
    Adapter,
    Audio,
    Begin,
    RefusalError,
    Resume,
    checked_phrases,
)
from speechkit.streaming.encoding import Pcm
from speechkit.streaming.endpoint import EndpointRules
from speechkit.streaming.event import Done, Endpoint, Event, Final, Partial, Refused, SpeechEnd, SpeechStart
from speechkit.streaming.opus import OggOpus

Wished = list[str] | dict[str, float] | None  # phrases, or their own weights too


class Message(BaseModel):
    """What clients send as text."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Endpointing(Message):
    """When a segment ends, in seconds; null switches a rule off."""

    trailing_s: float | None = 1.2
    silence_s: float | None = 2.4
    longest_s: float | None = 20.0
    vad: bool = False


class Config(Message):
    """The first message: what the audio is, and what is wanted."""

    type: Literal["config"]
    rate: int = Field(default=16_000, ge=1000, le=384_000)
    encoding: str = "s16le"
    channels: int = 1
    latency_ms: float | None = Field(default=None, ge=0, le=60_000)
    hotwords: Wished = None
    hotword_weight: float = Field(default=2.0, ge=0, le=20)
    endpoint: Endpointing = Endpointing()
    partials: bool = True
    words: bool = True
    second_pass: bool = False
    resume: str | None = Field(default=None, max_length=100)
    after: int = Field(default=0, ge=0)


class Finalize(Message):
    """Ends the segment with what was sent."""

    type: Literal["finalize"]


class SetLatency(Message):
    """Changes the look-ahead at the next segment."""

    type: Literal["set_latency"]
    latency_ms: float = Field(ge=0, le=60_000)


class Hotwords(Message):
    """Changes the phrases to favour at the next segment."""

    type: Literal["hotwords"]
    phrases: Wished = None
    weight: float = Field(default=2.0, ge=0, le=20)


class Keepalive(Message):
    """Nothing, so that a silent client is not taken for a dead one."""

    type: Literal["keepalive"]


class Close(Message):
    """No more audio comes: what is left is recognised, then the server says `done` and closes."""

    type: Literal["close"]


_MESSAGES: TypeAdapter[Any] = TypeAdapter(
    Annotated[Config | Finalize | SetLatency | Hotwords | Keepalive | Close, Field(discriminator="type")]
)


class Own(Adapter):
    """Our own protocol.

    Args:
        longest_s: the longest segment that a client may have.
    """

    name = "speechkit"
    resumable = True

    def __init__(self, longest_s: float) -> None:
        self.longest_s = longest_s
        self.config: Config | None = None

    def hear(self, message: str | bytes) -> Sequence[Action]:
        """As `Adapter.hear`; audio before any `config` is 16 kHz s16le."""
        if isinstance(message, bytes):
            first = () if self.config else self._begin(Config(type="config"))
            return (*first, Audio(message))
        match _parsed(message):
            case Config() as config:
                if self.config is not None:
                    raise RefusalError(1008, "bad_message", "`config` comes once, as the first message")
                return self._begin(config)
            case Finalize():
                return (command.Finalize(),)
            case SetLatency(latency_ms=latency_ms):
                return (command.SetLatency(latency_ms),)
            case Hotwords(phrases=phrases, weight=weight):
                return (command.SetPhrases(checked_phrases(phrases), weight),)
            case Close():
                return (command.Finish(),) if self.config else (*self._begin(Config(type="config")), command.Finish())
            case _:
                return ()

    def _begin(self, config: Config) -> tuple[Action, ...]:
        self.config = config
        if config.resume is not None:
            return (Resume(config.resume, config.after),)
        asked = config.endpoint
        longest = min(self.longest_s, asked.longest_s or self.longest_s)
        rules = EndpointRules(asked.trailing_s, asked.silence_s, longest)
        phrases = checked_phrases(config.hotwords)
        ogg = config.encoding == "opus"
        decoder = OggOpus() if ogg else Pcm(config.encoding, config.channels)
        rate = opus.RATE if ogg else config.rate
        settings = command.Settings(
            rate, config.latency_ms, rules, phrases, config.hotword_weight, asked.vad, config.second_pass
        )
        return (Begin(settings, decoder),)

    def opened(self, about: About, resumed: bool) -> Sequence[str]:
        """`ready`."""
        ready = {
            "session": about.id,
            "resumed": resumed,
            "received": about.received,
            "model": about.model,
            "rate": about.rate,
            "latency_ms": about.latency_ms,
            "latencies_ms": list(about.latencies_ms),
            "second_pass": about.second_pass,
            "resume_s": about.resume_s,
            "server": about.server,
        }
        return (_text("ready", **ready),)

    def tell(self, number: int, event: Event) -> Sequence[str]:
        """As `Adapter.tell`; every event has a type and its number."""
        config = self.config or Config(type="config")
        match event:
            case Partial():
                if not config.partials:
                    return ()
                words: dict[str, Any] = {"words": _words(event.words)} if config.words else {}
                values: dict[str, Any] = {"segment": event.segment, "revision": event.revision}
                values |= {"text": event.text, "stable": event.stable}
                return (_text("partial", number, **values, start_s=event.start_s, end_s=event.end_s, **words),)
            case Final():
                words = {"words": _words(event.words)} if config.words else {}
                values = {"segment": event.segment, "revision": event.revision}
                values |= {"text": event.text, "reason": event.reason}
                return (_text("final", number, **values, start_s=event.start_s, end_s=event.end_s, **words),)
            case Endpoint():
                return (_text("endpoint", number, segment=event.segment, reason=event.reason, at_s=event.at_s),)
            case SpeechStart():
                return (_text("speech_start", number, at_s=event.at_s),)
            case SpeechEnd():
                return (_text("speech_end", number, at_s=event.at_s),)
            case Refused():
                return (_text("error", number, code="refused", message=event.reason, fatal=False),)
            case Done():
                return (_text("done", number, seconds=event.seconds, segments=event.segments),)

    def fail(self, refusal: RefusalError) -> Sequence[str]:
        """`error`."""
        return (_text("error", code=refusal.code, message=refusal.message, fatal=True),)


def _parsed(message: str) -> Any:
    try:
        return _MESSAGES.validate_json(message)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        broken = first["type"] == "json_invalid"
        sentence = f"this message cannot be understood: {where + ': ' if where else ''}{first['msg']}"
        raise RefusalError(1007 if broken else 1008, "bad_message", sentence[:300]) from None


def _words(words: Sequence[Word]) -> list[dict[str, str | float]]:
    return [
        {"word": w.text, "start_s": w.start_s, "end_s": w.end_s, "confidence": round(w.confidence, 4)} for w in words
    ]


def _text(kind: str, number: int | None = None, /, **values: Any) -> str:
    return json.dumps({"type": kind} | ({} if number is None else {"seq": number}) | values, ensure_ascii=False)
