"""OpenAI's realtime protocol as far as it transcribes: `/v1/realtime?intent=transcription`, JSON with base64 audio."""

import base64
import binascii
import itertools
import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from speechkit.errors import InputError
from speechkit.streaming.adapters.adapter import About, Action, Adapter, Answer, Audio, Begin, RefusalError, number
from speechkit.streaming.command import Finalize, Settings
from speechkit.streaming.encoding import Pcm
from speechkit.streaming.endpoint import EndpointRules
from speechkit.streaming.event import Endpoint, Event, Final, Partial, SpeechStart

FORMATS = {
    "audio/pcm": ("s16le", 24_000), "audio/pcmu": ("mulaw", 8000), "audio/pcma": ("alaw", 8000),
    "pcm16": ("s16le", 24_000), "g711_ulaw": ("mulaw", 8000), "g711_alaw": ("alaw", 8000),
}  # fmt: skip


class OpenAIRealtime(Adapter):
    """Transcription sessions, in the words of the present protocol and of its beta (`transcription_session.update`).

    What concerns other models than ours (`model`, `language`, `noise_reduction`) is kept and said back, and changes
    nothing. A message that cannot be understood is answered with an ``error`` and changes nothing.

    Args:
        longest_s: the longest segment.
    """

    name = "openai"

    def __init__(self, longest_s: float, model: str = "") -> None:
        self.longest_s = longest_s
        self.session: dict[str, Any] = {
            "type": "transcription",
            "object": "realtime.transcription_session",
            "id": f"sess_{secrets.token_hex(8)}",
            "audio": {
                "input": {
                    "format": {"type": "audio/pcm", "rate": 24_000},
                    "transcription": {"model": model},
                    "noise_reduction": None,
                    "turn_detection": {"type": "server_vad", "silence_duration_ms": 1200},
                }
            },
        }
        self._begun = self._empty = False
        self._items = itertools.count()
        self._item = self._new_item()
        self._before: str | None = None
        self._said = ""

    def _new_item(self) -> str:
        return f"item_{next(self._items)}_{secrets.token_hex(4)}"

    def begin(self) -> Sequence[Action]:
        """As `Adapter.begin`."""
        return (Answer((_event("session.created", session=self.session),)),)

    def hear(self, message: str | bytes) -> Sequence[Action]:
        """As `Adapter.hear`."""
        name = None
        try:
            told = json.loads(message) if isinstance(message, str) else None
            if not isinstance(told, dict):
                raise InputError("a message must be a JSON object: audio comes as base64 in it")
            name = str(told.get("event_id"))[:100] if told.get("event_id") else None
            return self._act(told)
        except (ValueError, RecursionError) as error:  # InputError is one
            sentence = str(error) if isinstance(error, InputError) else "this message is no JSON"
            return (Answer((_error("invalid_request_error", sentence, name),)),)

    def _act(self, told: Mapping[str, Any]) -> Sequence[Action]:
        match told.get("type"):
            case "session.update" | "transcription_session.update" as kind:
                self._update(told.get("session"))
                done = str(kind).replace("update", "updated")
                return (Answer((_event(done, session=self.session),)),)
            case "input_audio_buffer.append":
                audio = Audio(_bytes(told.get("audio")))
                return (*self._begin(), audio)
            case "input_audio_buffer.commit":
                return (*self._begin(), Finalize())
            case "input_audio_buffer.clear":
                raise InputError("audio that was sent is transcribed at once and cannot be cleared")
        raise InputError(f"there is no message of type {str(told.get('type'))[:60]!r} in a transcription session")

    def _update(self, wanted: object) -> None:
        if not isinstance(wanted, Mapping):
            raise InputError("session must be an object")
        if wanted.get("type", "transcription") != "transcription":
            raise InputError("the only sessions are of type transcription")
        found = wanted.get("audio", {})
        given = found.get("input", {}) if isinstance(found, Mapping) else None
        if not isinstance(given, Mapping):
            raise InputError("session.audio.input must be an object")
        beta = {"input_audio_format": "format", "input_audio_transcription": "transcription"}
        same = {name: wanted[name] for name in ("turn_detection",) if name in wanted}
        given = {**given, **same, **{new: wanted[old] for old, new in beta.items() if old in wanted}}
        unchanged = self.session["audio"]["input"]
        changed = unchanged | {name: value for name, value in given.items() if name in unchanged}
        _format(changed["format"])
        self._rules(changed["turn_detection"])
        fixed = ("format", "turn_detection")
        if self._begun and any(changed[name] != unchanged[name] for name in fixed):
            raise InputError("format and turn_detection cannot change once audio was sent")
        self.session["audio"]["input"] = changed

    def _rules(self, detection: object) -> EndpointRules:
        longest = min(20.0, self.longest_s)
        if detection is None:
            return EndpointRules(trailing_s=None, silence_s=None, longest_s=longest)
        if not isinstance(detection, Mapping):
            raise InputError("turn_detection must be an object or null")
        silence = number(detection.get("silence_duration_ms") or 1200, "silence_duration_ms") / 1000
        return EndpointRules(trailing_s=max(0.1, silence), longest_s=longest)

    def _begin(self) -> tuple[Action, ...]:
        if self._begun:
            return ()
        self._begun = True
        given = self.session["audio"]["input"]
        encoding, rate = _format(given["format"])
        return (Begin(Settings(rate, rules=self._rules(given["turn_detection"])), Pcm(encoding, cut=True)),)

    def opened(self, about: About, resumed: bool) -> Sequence[str]:
        """The session was told of when the connection began."""
        return ()

    def tell(self, number: int, event: Event) -> Sequence[str]:
        """As `Adapter.tell`."""
        match event:
            case SpeechStart():
                at = round(1000 * event.at_s)
                return (_event("input_audio_buffer.speech_started", audio_start_ms=at, item_id=self._item),)
            case Partial():
                return self._delta(event.text)
            case Final():
                return (*self._delta(event.text), *self._completed(event))
            case Endpoint(reason="finalize"):
                empty, self._empty = not self._empty, False
                return self._completed(None) if empty else ()  # the client waits for an answer
            case _:
                return ()

    def _delta(self, text: str) -> tuple[str, ...]:
        new, self._said = text[len(self._said) :], text
        kind = "conversation.item.input_audio_transcription.delta"
        return (_event(kind, item_id=self._item, content_index=0, delta=new),) if new else ()

    def _completed(self, final: Final | None) -> tuple[str, ...]:
        item, before = self._item, self._before
        self._item, self._before, self._said = self._new_item(), item, ""
        self._empty = final is not None and final.reason == "finalize"
        told = []
        if final is not None and final.reason != "finalize":
            at = round(1000 * final.end_s)
            told.append(_event("input_audio_buffer.speech_stopped", audio_end_ms=at, item_id=item))
        seconds_heard = 0.0 if final is None else round(final.end_s - final.start_s, 3)
        told.append(_event("input_audio_buffer.committed", item_id=item, previous_item_id=before))
        told.append(
            _event(
                "conversation.item.input_audio_transcription.completed", item_id=item, content_index=0,
                transcript="" if final is None else final.text, usage={"type": "duration", "seconds": seconds_heard},
            )
        )  # fmt: skip
        return tuple(told)

    def fail(self, refusal: RefusalError) -> Sequence[str]:
        """``error``."""
        kind = "server_error" if refusal.close in (1011, 1013) else "invalid_request_error"
        return (_error(kind, refusal.message, None, refusal.code),)


def _format(value: object) -> tuple[str, int]:
    """Encoding and rate of a format, an object or the beta's word."""
    kind = value.get("type") if isinstance(value, Mapping) else value
    if not isinstance(kind, str) or kind not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}, got {str(kind)[:40]!r}")
    encoding, rate = FORMATS[kind]
    wanted = value.get("rate") if isinstance(value, Mapping) else None
    if wanted is not None and encoding == "s16le":
        rate = round(number(wanted, "rate"))
        if not 1000 <= rate <= 384_000:
            raise InputError(f"rate must be from 1000 to 384000 Hz, got {rate}")
    return encoding, rate


def _bytes(text: object) -> bytes:
    try:
        if isinstance(text, str):
            return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        pass
    raise InputError("audio must be base64")


def _event(kind: str, **values: Any) -> str:
    # In ASCII: what clients said is said back, and may hold half of a surrogate pair, which UTF-8 cannot.
    return json.dumps({"type": kind, "event_id": f"event_{secrets.token_hex(8)}", **values})


def _error(kind: str, message: str, about: str | None, code: str | None = None) -> str:
    return _event("error", error={"type": kind, "code": code, "message": message, "param": None, "event_id": about})
