"""The websocket protocol of sherpa-onnx' streaming servers: f32le in, JSON after each decoding, `Done` at the end."""

import json
from collections.abc import Sequence

from speechkit.asr.decoding.words import Word
from speechkit.streaming.adapters.adapter import Action, Adapter, Audio, Begin, RefusalError
from speechkit.streaming.command import Finish, Settings
from speechkit.streaming.encoding import Pcm
from speechkit.streaming.event import Done, Event, Final, Partial


class Sherpa(Adapter):
    """The protocol of sherpa-onnx: no configuration; samples in [-1, 1] at the model's rate, then the text ``Done``.

    Answers have the fields of its C++ server. Its Python server has ``text`` and ``segment`` alone, which are here too.

    Args:
        rate: of the samples, Hz.
    """

    name = "sherpa"

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._last = ("", 0, 0.0)  # text, segment and start of the last answer

    def begin(self) -> Sequence[Action]:
        """As `Adapter.begin`."""
        return (Begin(Settings(rate=self.rate), Pcm("f32le", cut=True)),)

    def hear(self, message: str | bytes) -> Sequence[Action]:
        """As `Adapter.hear`."""
        if isinstance(message, bytes):
            return (Audio(message),)
        if message.strip() == "Done":
            return (Finish(),)
        raise RefusalError(1003, "bad_message", "the only text that is understood is Done")

    def tell(self, number: int, event: Event) -> Sequence[str]:
        """As `Adapter.tell`; the last answer is said once more at the end, and then ``Done!``."""
        match event:
            case Partial() | Final():
                self._last = (event.text, event.segment, event.start_s)
                final = isinstance(event, Final)
                return (_answer(event.text, event.segment, event.start_s, event.words, final, False),)
            case Done():
                return (_answer(*self._last, (), True, True), "Done!")
            case _:
                return ()


def _answer(text: str, segment: int, start_s: float, words: Sequence[Word], final: bool, eof: bool) -> str:
    told = {
        "text": text,
        "segment": segment,
        "start_time": start_s,
        "tokens": [word.text for word in words],
        "timestamps": [round(word.start_s - start_s, 3) for word in words],
        "words": [word.text for word in words],
        "is_final": final,
        "is_eof": eof,
    }
    return json.dumps(told, ensure_ascii=False)
