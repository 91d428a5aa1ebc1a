"""Deepgram's live protocol, `/v1/listen`: options in the address, binary audio, JSON results."""

import json
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

from speechkit import wav
from speechkit.asr.decoding.words import Word
from speechkit.errors import InputError
from speechkit.streaming import opus
from speechkit.streaming.adapters.adapter import (
    About,
    Action,
    Adapter,
    Audio,
    Begin,
    RefusalError,
    checked_phrases,
    number,
)
from speechkit.streaming.command import Finalize, Finish, Settings
from speechkit.streaming.encoding import Pcm
from speechkit.streaming.endpoint import EndpointRules
from speechkit.streaming.event import Done, Endpoint, Event, Final, Partial, SpeechEnd, SpeechStart
from speechkit.streaming.opus import OggOpus

ENCODINGS = {"linear16": "s16le", "linear32": "f32le", "mulaw": "mulaw", "alaw": "alaw"}
HEADER = 65_536  # bytes in which a WAV file's header must end


class Deepgram(Adapter):
    """Deepgram's protocol; what concerns other models than ours (`model`, `language`, `punctuate`) is ignored.

    Args:
        query: of the address, each name with its values.
        longest_s: the longest segment.

    Raises:
        InputError: a value cannot be used.
    """

    name = "deepgram"

    def __init__(self, query: Mapping[str, Sequence[str]], longest_s: float) -> None:
        self.query = query
        self.interim = self._flag("interim_results")
        self.vad, self.utterances = self._flag("vad_events"), "utterance_end_ms" in query
        self.rules = self._rules(longest_s)
        self.phrases = checked_phrases(
            [_phrase(text) for name in ("keyterm", "keywords") for text in query.get(name, ())]
        )
        self.channels = round(self._number("channels", 1))
        self.request, self.created = secrets.token_hex(16), datetime.now(UTC).isoformat()
        self.model = ""
        self._head: bytes | None = b""  # of a container, until its header is whole
        self._flushed = False  # whether the last result came of `Finalize`
        encoding = self._last("encoding")
        if encoding in ("opus", "ogg-opus"):
            encoding = None  # its container says what it is
        if encoding is not None and encoding not in ENCODINGS:
            raise InputError(f"encoding must be one of {', '.join(ENCODINGS)}, got {encoding[:40]!r}")
        self.encoding = None if encoding is None else ENCODINGS[encoding]
        if self.encoding is not None:
            Pcm(self.encoding, self.channels)
            if not 1000 <= self._number("sample_rate", 0) <= 384_000:
                raise InputError("encoding needs sample_rate, from 1000 to 384000 Hz")

    def _last(self, name: str) -> str | None:
        values = self.query.get(name)
        return values[-1] if values else None

    def _flag(self, name: str) -> bool:
        return (self._last(name) or "false").lower() == "true"

    def _number(self, name: str, default: float) -> float:
        value = self._last(name)
        try:
            return default if value is None else number(float(value), name)  # neither NaN nor Inf
        except ValueError:
            raise InputError(f"{name} must be a number, got {str(value)[:40]!r}") from None

    def _rules(self, longest_s: float) -> EndpointRules:
        longest = min(20.0, longest_s)
        if (self._last("endpointing") or "").lower() == "false":
            return EndpointRules(trailing_s=None, longest_s=longest)
        if "endpointing" not in self.query or (self._last("endpointing") or "").lower() == "true":
            return EndpointRules(longest_s=longest)
        return EndpointRules(trailing_s=max(0.1, self._number("endpointing", 0) / 1000), longest_s=longest)

    def begin(self) -> Sequence[Action]:
        """As `Adapter.begin`."""
        return () if self.encoding is None else self._begin(round(self._number("sample_rate", 0)), self.encoding)

    def _begin(self, rate: int, encoding: str) -> tuple[Action, ...]:
        self._head = None
        return (Begin(self._settings(rate), Pcm(encoding, self.channels, cut=True)),)

    def _settings(self, rate: int) -> Settings:
        latency = self._number("latency_ms", -1) if "latency_ms" in self.query else None
        return Settings(rate, latency, self.rules, self.phrases)

    def hear(self, message: str | bytes) -> Sequence[Action]:
        """As `Adapter.hear`."""
        if isinstance(message, bytes):
            return self._audio(message)
        try:
            kind = json.loads(message).get("type")
        except (ValueError, AttributeError, RecursionError):
            raise RefusalError(1008, "bad_message", "a text must be a JSON object with a type") from None
        match kind:
            case "Finalize":
                return (Finalize(),)
            case "CloseStream":
                return (Finish(),) if self._head is None else (*self._begin(16_000, "s16le"), Finish())
            case "KeepAlive":
                return ()
        raise RefusalError(1008, "bad_message", "type must be Finalize, CloseStream or KeepAlive")

    def _audio(self, data: bytes) -> Sequence[Action]:
        if self._head is None:
            return (Audio(data),)
        self._head += data
        head = self._head
        if head.startswith(b"OggS"):
            self._head = None
            return (Begin(self._settings(opus.RATE), OggOpus()), Audio(head))
        if len(head) >= 12 and not (head.startswith(b"RIFF") and head[8:12] == b"WAVE"):
            raise RefusalError(1008, "bad_message", "name encoding and sample_rate, or send a WAV file or Ogg/Opus")
        if head.find(b"data", 12) < 0 or len(head) < head.find(b"data", 12) + 8:
            if len(head) > HEADER:
                raise RefusalError(1008, "bad_message", "this WAV file has no data")
            return ()
        stream = BytesIO(head)
        header = wav.read_header(stream, "the stream")
        found = None
        if header is not None:
            found = {(wav.PCM, 2): "s16le", (wav.FLOAT, 4): "f32le"}.get(
                (header.encoding, header.block // header.channels)
            )
        if header is None or found is None:
            raise RefusalError(1008, "bad_message", "a WAV file must have 16-bit PCM or 32-bit float samples")
        self.channels = header.channels
        return (*self._begin(header.rate, found), Audio(stream.read()))

    def opened(self, about: About, resumed: bool) -> Sequence[str]:
        """Keeps the model's name; Deepgram says nothing here."""
        self.model = about.model
        return ()

    def tell(self, number: int, event: Event) -> Sequence[str]:
        """As `Adapter.tell`."""
        match event:
            case Partial() if self.interim:
                return (self._results(event.text, event.words, event.start_s, event.end_s),)
            case Final():
                self._flushed = event.reason == "finalize"
                spoken = event.reason in ("trailing", "end")
                flags = {"is_final": True, "speech_final": spoken, "from_finalize": event.reason == "finalize"}
                return (self._results(event.text, event.words, event.start_s, event.end_s, **flags),)
            case Endpoint(reason="finalize"):
                flushed, self._flushed = self._flushed, False
                if not flushed:  # the client waits for an answer, though nothing was said
                    flags = {"is_final": True, "speech_final": False, "from_finalize": True}
                    return (self._results("", (), event.at_s, event.at_s, **flags),)
            case SpeechStart() if self.vad:
                return (_json(type="SpeechStarted", channel=[0, 1], timestamp=event.at_s),)
            case SpeechEnd() if self.utterances:
                return (_json(type="UtteranceEnd", channel=[0, 1], last_word_end=event.at_s),)
            case Done():
                return (self._metadata(event.seconds),)
            case _:
                pass
        return ()

    def _results(self, text: str, words: Sequence[Word], start: float, end: float, **flags: bool) -> str:
        told = [
            {"word": w.text, "punctuated_word": w.text, "start": w.start_s, "end": w.end_s, "confidence": w.confidence}
            for w in words
        ]
        confidence = sum(word.confidence for word in words) / len(words) if words else 0.0
        alternative = {"transcript": text, "confidence": confidence, "words": told}
        about = {"name": self.model, "version": "1", "arch": "speechkit"}
        metadata = {"request_id": self.request, "model_info": about, "model_uuid": self.request}
        given = {"is_final": False, "speech_final": False, "from_finalize": False} | flags
        return _json(
            type="Results", channel_index=[0, 1], start=start, duration=round(max(0.0, end - start), 3), **given,
            channel={"alternatives": [alternative]}, metadata=metadata,
        )  # fmt: skip

    def _metadata(self, seconds: float) -> str:
        return _json(
            type="Metadata", transaction_key="deprecated", request_id=self.request, sha256="", created=self.created,
            duration=seconds, channels=1,
        )  # fmt: skip


def _phrase(text: str) -> str:
    """A keyword without the weight that may follow it."""
    word, _, weight = text.rpartition(":")
    return word if word and weight.lstrip("-").replace(".", "", 1).isdigit() else text


def _json(**values: Any) -> str:
    return json.dumps(values, ensure_ascii=False)
