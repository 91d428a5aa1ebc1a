"""Recordings to text, one after another: one that cannot be used is named, and the others are transcribed."""

import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import isinf
from pathlib import Path
from typing import Any

import numpy as np

from speechkit.asr.transcriber import WINDOW_SECONDS, Transcriber, Transcript
from speechkit.commands.formats import Format, make
from speechkit.commands.progress import progress
from speechkit.commands.sources import Recording, write
from speechkit.errors import InputError

BLOCK_S = 0.1  # seconds of sound that a stream is given at a time


class Good:
    """Blocks up to where a recording turns out to be damaged; `error` then says how. Without a good block it raises."""

    def __init__(self, blocks: Iterator[np.ndarray]) -> None:
        self._blocks = blocks
        self.error: InputError | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        heard = False
        try:
            for block in self._blocks:
                heard = True
                yield block
        except InputError as error:
            if not heard:
                raise
            self.error = error


@dataclass(frozen=True)
class Transcribing:
    """What all recordings have in common.

    Args:
        transcriber: the model.
        options: of `Transcriber.stream` or `Transcriber.transcribe`.
        stream: chunk by chunk, with words as they are known.
        raw_rate: recordings have no header, but this rate, Hz.
        kind, words, nbest: see `formats.make`.
        several: on standard output, the name of each stands before its text.
    """

    transcriber: Transcriber
    options: dict[str, Any]
    stream: bool
    raw_rate: int | None
    kind: str
    words: bool
    nbest: int
    several: bool

    def all(self, recordings: Sequence[Recording], targets: Mapping[Recording, Path]) -> int:
        """Texts to standard output, or to the file that a recording has in `targets`; how many could not be used."""
        return sum([not self._written(recording, targets.get(recording)) for recording in recordings])

    def _written(self, recording: Recording, target: Path | None) -> bool:
        """Whether a recording could be used; if not, it is said why."""
        decode = self.transcriber.tokenizer.decode
        try:
            with nullcontext(sys.stdout) if target is None else io.StringIO() as file:
                several = self.several and target is None
                sink = make(self.kind, file, recording.name, several, self.words, self.nbest, decode)
                broken = self._transcribe(recording, sink, target is None)
                if target is not None:
                    write(target, file.getvalue())  # type: ignore[union-attr]
        except InputError as error:
            broken = error
        if broken is not None:
            complain(str(broken))
        return broken is None

    def _transcribe(self, recording: Recording, sink: Format, printed: bool) -> InputError | None:
        """One recording; of a damaged one what is good, and what is wrong with it."""
        rate = self.transcriber.rate
        shown = sys.stderr.isatty() and not (self.stream and printed and sys.stdout.isatty())
        told = 0
        try:
            with progress(recording.path, shown) as passed:
                good = Good(recording.blocks(rate, BLOCK_S if self.stream else 1.0, self.raw_rate))
                blocks = passed(iter(good), rate)
                if self.stream:
                    told, result = self._live(blocks, sink)
                else:
                    result = self.transcriber.transcribe(blocks, **self.options)
            for word in result.words[told:]:
                sink.word(word)
            sink.end(result)
        finally:
            sink.close()
        if self._whole and result.seconds > WINDOW_SECONDS:
            print(f"{recording.name}: heard with full context, in windows, cut at pauses", file=sys.stderr)
        return good.error

    @property
    def _whole(self) -> bool:
        """Whether recordings are heard with full context."""
        if self.stream:
            return False
        context = self.transcriber.context(self.options.get("latency_ms"))
        return isinf(self.transcriber.model.latency_ms(context))

    def _live(self, blocks: Iterator[np.ndarray], sink: Format) -> tuple[int, Transcript]:
        """Gives words as they are known; how many it gave, and the transcript."""
        live, told = self.transcriber.stream(**self.options), 0
        for block in blocks:
            live.push(block)
            for word in live.settled[told:]:
                sink.word(word)
            told = len(live.settled)
            sink.partial(live.open)
        return told, live.finish()


def print_any_name() -> None:
    """Lets standard output take names of files that are no text: as the bytes that they are, where it is UTF-8."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        unicode = sys.stdout.encoding.lower().replace("-", "") == "utf8"
        sys.stdout.reconfigure(errors="surrogateescape" if unicode else "backslashreplace")


def complain(sentence: str) -> None:
    """An error that does not end the command."""
    print(f"error: {sentence}", file=sys.stderr)
