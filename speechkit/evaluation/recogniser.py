"""Recognisers: error rates and delays."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from rich.table import Table

from speechkit.asr.evaluation import Score, check_choice, score
from speechkit.asr.latency import Aligner
from speechkit.asr.scores import plot, table
from speechkit.asr.transcriber import Transcriber
from speechkit.commands.loading import recogniser
from speechkit.data.module import SpeechDataModule
from speechkit.errors import InputError
from speechkit.evaluation.kind import listed

log = logging.getLogger(__name__)


class RecogniserEvaluation:
    """Scores a recogniser under its masks and as a stream.

    Args:
        model: recognises.
        device: where it is.
        modes, decoders, beam: see `asr.evaluation.score`.
        latencies_ms: look-aheads; None for all that the model was trained with.
        delay: whether streams are measured for their emission delay.
        aligner: name of a model whose CTC head aligns the words for that; None is the model's own.

    Raises:
        InputError: the model cannot do it.
    """

    options: ClassVar[Mapping[str, Any]] = {
        "modes": Sequence[str], "decoders": Sequence[str] | None, "latencies_ms": Sequence[float] | None, "beam": int,
        "delay": bool, "aligner": str | None,
    }  # fmt: skip

    def __init__(
        self,
        model: Transcriber,
        device: str,
        modes: str | Sequence[str],
        decoders: str | Sequence[str] | None = None,
        latencies_ms: Sequence[float] | None = None,
        beam: int = 1,
        delay: bool = True,
        aligner: str | None = None,
    ) -> None:
        self.model, self.device, self.beam = model, device, beam
        self.modes, self.decoders = listed(modes) or [], listed(decoders)
        check_choice(model, self.modes, self.decoders, beam)
        self.contexts = None if latencies_ms is None else [model.context(ms) for ms in latencies_ms]
        streams = delay and "streaming" in self.modes and model.latencies_ms
        self.aligner = _aligner(model, aligner, device) if streams else None
        self.skipped: dict[str, list[str]] = {}

    @property
    def rate(self) -> int:
        """Of the model, Hz."""
        return self.model.rate

    def about(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def scored(self, data: SpeechDataModule, split: str, limit: int | None) -> Iterator[list[Score]]:
        """All scores of a split; raises as `SpeechDataModule.waves`, and where there are no texts."""
        kept, waves, self.skipped[split] = data.waves(split, limit)
        texts = [utterance.text for utterance in kept]
        if not any(texts):
            raise InputError(f"{split} was read without texts, as data of codecs are, so that there are no error rates")
        log.info("%s: %d utterances, %d skipped", split, len(kept), len(self.skipped[split]))
        sound = [wave.to(self.device) for wave in waves]
        ends = None if self.aligner is None else [self.aligner.word_ends(*p) for p in zip(sound, texts, strict=True)]
        if ends is not None and None in ends:
            log.info("%s: %d utterances cannot be aligned and do not count for the delay", split, ends.count(None))
        yield score(self.model, split, sound, texts, self.modes, self.decoders, self.contexts, self.beam, ends)

    def table(self, scores: Sequence[Score]) -> Table:
        """See `asr.scores.table`."""
        return table(scores)

    def pictures(self, scores: Sequence[Score]) -> dict[str, bytes]:
        """Error rate against latency."""
        return {"wer.png": plot(scores)}


def _aligner(model: Transcriber, name: str | None, device: str) -> Aligner | None:
    """What aligns words: the model itself if it can, or another one."""
    if name is None:
        return Aligner(model) if getattr(model.model, "ctc", None) is not None else None
    other = recogniser(name, device)
    if other.rate != model.rate:
        raise InputError(f"the aligner takes {other.rate} Hz and the model {model.rate} Hz: they must agree")
    return Aligner(other)
