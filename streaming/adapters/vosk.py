"""Vosk's websocket protocol (alphacep/vosk-server): s16le in, one answer to every message of audio."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from speechkit.errors import InputError
from speechkit.streaming.adapters.adapter import (
    Action,
    Adapter,
    Audio,
    Begin,
    Poll,
    RefusalError,
    checked_phrases,
    number,
)
from speechkit.streaming.command import Finalize, Finish, Settings
from speechkit.streaming.encoding import Pcm
from speechkit.streaming.event import Done, Event, Final, Partial
from speechkit.text import join_words


class Vosk(Adapter):
    """The protocol of Vosk's server, which is at the root of its address.

    Its clients send a message and wait for one answer: what the segment under way has so far, or the segments that
    ended since. ``{"eof": 1}`` is answered when all is recognised.

    Args:
        rate: of clients that name none, Hz.
    """

    name = "vosk"

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.words = False
        self._begun = self._ending = False
        self._partial = ""
        self._finals: list[Final] = []

    def hear(self, message: str | bytes) -> Sequence[Action]:
        """As `Adapter.hear`."""
        if isinstance(message, bytes):
            return (*self._begin({}), Audio(message), Poll())
        told = _object(message)
        if "config" in told:
            if self._begun:
                raise RefusalError(1008, "bad_message", "`config` comes once, before any audio")
            config = told["config"]
            if not isinstance(config, Mapping):
                raise RefusalError(1008, "bad_message", "`config` must be an object")
            return self._begin(config)
        if told.get("eof"):
            self._ending = True
            return (*self._begin({}), Finish())
        if told.get("reset"):
            return (*self._begin({}), Finalize(), Poll())
        raise RefusalError(1008, "bad_message", "a message must have `config`, `eof` or `reset`")

    def _begin(self, config: Mapping[str, Any]) -> tuple[Action, ...]:
        if self._begun:
            return ()
        self._begun = True
        given_rate = config.get("sample_rate", self.rate)
        if isinstance(given_rate, str) and given_rate.isdecimal():  # which Vosk's server takes
            given_rate = int(given_rate)
        rate = number(given_rate, "sample_rate")
        if not 1000 <= rate <= 384_000:
            raise InputError(f"sample_rate must be from 1000 to 384000 Hz, got {rate:g}")
        self.words = bool(config.get("words", False))
        phrases = config.get("phrase_list")
        if phrases is not None and not (isinstance(phrases, list) and all(isinstance(p, str) for p in phrases)):
            raise InputError("phrase_list must be a list of texts")
        given = [phrase for phrase in phrases or [] if phrase != "[unk]"]
        return (Begin(Settings(rate=round(rate), phrases=checked_phrases(given)), Pcm(cut=True)),)

    def tell(self, number: int, event: Event) -> Sequence[str]:
        """Keeps what `polled` says; the answer to ``eof`` comes with the end."""
        match event:
            case Partial():
                self._partial = event.text
            case Final():
                self._finals.append(event)
                self._partial = ""
            case Done():
                return (self._result(),) if self._ending else ()
            case _:
                pass
        return ()

    def polled(self) -> str:
        """As `Adapter.polled`."""
        return self._result() if self._finals else _json(partial=self._partial)

    def _result(self) -> str:
        finals, self._finals = self._finals, []
        text = join_words(final.text for final in finals)
        words = [word for final in finals for word in final.words]
        if not (self.words and words):
            return _json(text=text)
        result = [{"conf": round(w.confidence, 6), "end": w.end_s, "start": w.start_s, "word": w.text} for w in words]
        return _json(result=result, text=text)

    def fail(self, refusal: RefusalError) -> Sequence[str]:
        """Vosk's server has no errors; clients that look find this one."""
        return (_json(error=refusal.message),)


def _object(message: str) -> dict[str, Any]:
    try:
        told = json.loads(message)
    except (ValueError, RecursionError):
        raise RefusalError(1007, "bad_message", "this message is no JSON") from None
    if not isinstance(told, dict):
        raise RefusalError(1008, "bad_message", "a message must be a JSON object")
    return told


def _json(**values: Any) -> str:
    return json.dumps(values, ensure_ascii=False)
