"""What `speechkit transcribe` prints: text, words, JSON and subtitles, word by word where the text comes so."""

import json
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from speechkit.asr.captions import Captioner, Cue, srt, vtt
from speechkit.asr.decoding.words import Word
from speechkit.asr.transcript import Transcript
from speechkit.text import space_between

SUFFIXES = {"text": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt"}

Decode = Callable[[Sequence[int]], str]


class Format:
    """Takes words as they become complete, and the whole at the end.

    Args:
        file: where it goes; flushed after everything that is said.
        name: of the recording, shown where there are several; None shows none.
    """

    def __init__(self, file: TextIO, name: str | None) -> None:
        self.file, self.name = file, name
        self.begun = False  # a line is open

    def word(self, word: Word) -> None:
        """A word that is complete."""

    def partial(self, text: str) -> None:
        """The beginning of the next word."""

    def end(self, transcript: Transcript) -> None:
        """The recording is over."""

    def close(self) -> None:
        """Ends an open line, also where something failed."""
        if self.begun:
            self._write("\n")
            self.begun = False

    def _write(self, text: str) -> None:
        self.file.write(text)
        self.file.flush()


class Plain(Format):
    """The text on one line."""

    _shown = ""  # of the word that is not complete
    _before = ""  # the word that is

    def word(self, word: Word) -> None:
        self._show(word.text)
        self._shown, self._before = "", word.text

    def partial(self, text: str) -> None:
        text = text.rstrip("\ufffd")  # a character of which a byte is missing
        if text and text.startswith(self._shown):
            self._show(text)

    def end(self, transcript: Transcript) -> None:
        if not self.begun:
            self._begin()
        self.close()

    def _begin(self) -> None:
        self._write(f"{self.name}: " if self.name else "")
        self.begun = True

    def _show(self, text: str) -> None:
        if not self.begun:
            self._begin()
        elif not self._shown:
            self._write(space_between(self._before, text))
        self._write(text.removeprefix(self._shown))
        self._shown = text


class Words(Format):
    """A line for each word: start and end in seconds, confidence, text."""

    def word(self, word: Word) -> None:
        name = f"{self.name}: " if self.name else ""
        self._write(f"{name}{word.start_s:9.2f} {word.end_s:9.2f}  {word.confidence:.2f}  {word.text}\n")


class Best(Format):
    """A line for each of the best hypotheses: score and text."""

    def __init__(self, file: TextIO, name: str | None, decode: Decode) -> None:
        super().__init__(file, name)
        self.decode = decode

    def end(self, transcript: Transcript) -> None:
        name = f"{self.name}: " if self.name else ""
        for found in transcript.hypotheses:
            self._write(f"{name}{found.score:9.3f}  {self.decode(found.tokens)}\n")


class Json(Format):
    """One object on one line."""

    def __init__(self, file: TextIO, source: str, words: bool, nbest: int, decode: Decode) -> None:
        super().__init__(file, None)
        self.source, self.words, self.nbest, self.decode = source, words, nbest, decode

    def end(self, transcript: Transcript) -> None:
        record: dict[str, Any] = {
            "file": self.source,
            "seconds": round(transcript.seconds, 3),
            "text": transcript.text,
            "confidence": round(transcript.confidence, 4),
        }
        if self.words:
            record["words"] = [
                {"word": w.text, "start": w.start_s, "end": w.end_s, "confidence": round(w.confidence, 4)}
                for w in transcript.words
            ]
        if self.nbest > 1:
            record["hypotheses"] = [
                {"text": self.decode(h.tokens), "score": round(h.score, 4)} for h in transcript.hypotheses
            ]
        line = json.dumps(record, ensure_ascii=False)
        try:
            line.encode()
        except UnicodeEncodeError:  # a file name that is no text
            line = json.dumps(record)
        self._write(line + "\n")


class Subtitles(Format):
    """SubRip or WebVTT, each cue as soon as it is complete."""

    def __init__(self, file: TextIO, kind: str) -> None:
        super().__init__(file, None)
        self.kind = kind
        self._captioner = Captioner()
        self._count = 0
        if kind == "vtt":
            self._write("WEBVTT\n\n")

    def word(self, word: Word) -> None:
        self._show(self._captioner.push(word))

    def end(self, transcript: Transcript) -> None:
        self._show(self._captioner.flush())

    def _show(self, cues: list[Cue]) -> None:
        for cue in cues:
            self._count += 1
            self._write(srt(self._count, cue) if self.kind == "srt" else vtt(cue))


def make(
    kind: str, file: TextIO, source: str, several: bool, words: bool = False, nbest: int = 1, decode: Decode = str
) -> Format:
    """The format of a name: ``text``, ``json``, ``srt`` or ``vtt``."""
    name = source if several else None
    if kind == "json":
        return Json(file, source, words, nbest, decode)
    if kind in ("srt", "vtt"):
        return Subtitles(file, kind)
    if nbest > 1:
        return Best(file, name, decode)
    return Words(file, name) if words else Plain(file, name)
