"""Codecs: what comes back of speech, how natural and how intelligible it is, and what it costs."""

import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from speechkit import hub
from speechkit.asr.transcriber import Transcriber
from speechkit.codecs.codec import Codec
from speechkit.codecs.roundtrip import PIECE_S, RoundTrip
from speechkit.commands.loading import recogniser as load_recogniser
from speechkit.data.module import SpeechDataModule
from speechkit.data.utterance import Utterance
from speechkit.errors import InputError
from speechkit.evaluation.codec_score import CodecScore, Heard, Tally, table
from speechkit.metrics import utmos as naturalness
from speechkit.metrics.audio import averaged, mean, similarity
from speechkit.text import normalize

log = logging.getLogger(__name__)

PACKAGED = "default"
WHOLE_S = 30.0  # longer recordings are encoded and decoded as streams


class CodecEvaluation:
    """Sends recordings through a codec, whole or, where they are long, piece by piece, and compares what comes back.

    Args:
        model: encodes and decodes.
        device: where it is.
        recogniser: name of a model that hears originals and reconstructions, where there are texts; ``default`` is the
            one that comes along, None leaves word error rates out.
        utmos: see `metrics.utmos.load`; None leaves it out.
        codebooks: of a codec with several codebooks, the first ones alone.

    Raises:
        InputError: there is no such model, or the codec has not so many codebooks.
    """

    options: ClassVar[Mapping[str, Any]] = {"recogniser": str | None, "utmos": str | None, "codebooks": int | None}

    def __init__(
        self,
        model: Codec,
        device: str,
        recogniser: str | None = PACKAGED,
        utmos: str | None = None,
        codebooks: int | None = None,
    ) -> None:
        model.check_codebooks(codebooks)
        self.model, self.codebooks = model, codebooks or model.codebooks
        self.recogniser = _recogniser(recogniser, device)
        self.utmos = None if utmos is None else naturalness.load(utmos, device)
        self.names = {"recogniser": None if self.recogniser is None else recogniser, "utmos": utmos}
        self.skipped: dict[str, list[str]] = {}

    @property
    def rate(self) -> int:
        """Of the codec, Hz."""
        return self.model.rate

    def about(self) -> dict[str, Any]:
        """The models that listened, and how many codebooks were used."""
        return {**self.names, "codebooks": self.codebooks}

    def scored(self, data: SpeechDataModule, split: str, limit: int | None) -> Iterator[list[CodecScore]]:
        """The score of a split; Ctrl-C gives that of the recordings before it. Raises as `data.recordings`."""
        found = data.recordings(split)
        bad = self.skipped[split] = list(found.bad)
        chosen = found[:limit]
        if self.recogniser is not None and not any(map(_words, chosen)):
            log.info("%s: there are no texts (of English words), and so no word error rate", split)
        tally = Tally(split, self.model.size, self.codebooks)
        shown = Console(stderr=True)
        try:
            for one in track(chosen, escape(split), console=shown, transient=True, disable=not sys.stderr.isatty()):
                try:
                    tally.add(*self._heard(one))
                except InputError as error:
                    bad.append(str(error))
                    log.warning("skipped: %s", error)
        except KeyboardInterrupt:
            if tally.heard:
                yield [tally.score(len(bad), whole=False)]
            raise
        if not tally.heard:
            raise InputError(f"{split} has no recording that can be used: {bad[0]}")
        log.info("%s: %d recordings, %d skipped", split, len(tally.heard), len(bad))
        yield [tally.score(len(bad))]

    def _heard(self, utterance: Utterance) -> tuple[Heard, RoundTrip]:
        """What is measured on a recording, which is decoded while the recogniser asks for more of it."""
        codec = self.model
        trip = RoundTrip(codec, utterance.pieces(codec.rate, PIECE_S), self.codebooks, WHOLE_S)
        parts, natural = [], []

        def back() -> Iterator[np.ndarray]:
            for ours, theirs in trip:
                parts.append((len(theirs), similarity(ours, theirs, codec.rate)))
                if self.utmos is not None:
                    natural.append((len(theirs), self.utmos(theirs, codec.rate), self.utmos(ours, codec.rate)))
                yield ours.clip(-1, 1)  # as a file would hold it

        words, said = _words(utterance), None
        if self.recogniser is None or words is None:
            for _ in back():
                continue
        else:
            after = self.recogniser.transcribe(back(), codec.rate).text
            before = self.recogniser.transcribe(utterance.pieces(self.recogniser.rate, PIECE_S)).text
            said = (words, normalize(before), normalize(after))
        if not parts:
            raise InputError(f"{utterance.path} is shorter than one sample at {codec.rate} Hz.")
        scores = {
            "utmos_original": mean([(count, before) for count, before, _ in natural]),
            "utmos": mean([(count, after) for count, _, after in natural]),
        }
        return Heard(trip.seconds, averaged(parts) | scores, trip.costs, said), trip

    def table(self, scores: Sequence[CodecScore]) -> Table:
        """A line for every figure, a column for every split."""
        return table(scores)

    def pictures(self, scores: Sequence[CodecScore]) -> dict[str, bytes]:
        """None."""
        return {}


def _recogniser(name: str | None, device: str) -> Transcriber | None:
    """The model of that name; the default may be missing, which is said."""
    if name != PACKAGED:
        return None if name is None else load_recogniser(name, device)
    try:
        packaged = hub.default()
    except InputError as error:
        log.warning("no word error rates: %s", error)
        return None
    return load_recogniser(packaged, device)


def _words(utterance: Utterance) -> str | None:
    """Its text as recognisers write it; None where there is none, or none that can be compared."""
    text = normalize(utterance.text)
    return text if re.fullmatch("[a-z' ]+", text) else None
