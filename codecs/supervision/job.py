"""What training speech tokens needs around its task: a listener, scores through tokens, release of the tokenizer."""

import logging
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from speechkit import hub
from speechkit.asr.job import RecognitionJob
from speechkit.codecs.s3 import TokenModel
from speechkit.codecs.supervision.listener import Listener
from speechkit.codecs.supervision.scoring import Score, score
from speechkit.data.module import SpeechDataModule
from speechkit.text import normalize

log = logging.getLogger(__name__)

API = "speechkit.codecs.s3.SpeechTokenizer"


class TokenJob(RecognitionJob):
    """Prepares, scores and releases a speech tokenizer for `speechkit.train`.

    Args:
        listener: takes `vocab_size` and gives what recognises speech from tokens; it trains along and is not released.
        tokenizer, size, step_ms, ctc, max_misfits, eval_utterances, half: as for `RecognitionJob`.
    """

    api = API

    def __init__(
        self,
        listener: Callable[..., Listener],
        tokenizer: str = "unigram",
        size: int | None = 1024,
        step_ms: float = 40.0,
        ctc: bool = True,
        max_misfits: float = 0.01,
        eval_utterances: int | None = None,
        half: bool = False,
    ) -> None:
        super().__init__(tokenizer, size, step_ms, ctc, max_misfits, eval_utterances, half)
        self.make_listener = listener
        self._listener: Listener | None = None

    @property
    def listener(self) -> Listener:
        """The one that trains along; made when it is first asked for."""
        if self._listener is None:
            self._listener = self.make_listener(vocab_size=self.tokenizer.vocab_size)
        return self._listener

    def task_arguments(self) -> dict[str, Any]:
        """What the task's constructor takes from here."""
        return {"tokenizer": self.tokenizer, "listener": self.listener}

    def evaluate(  # type: ignore[override]
        self, model: TokenModel, data: SpeechDataModule, splits: Sequence[str]
    ) -> list[Score]:
        """Scores of every split and way to text, from codes alone; a split that cannot be read has none."""
        scores: list[Score] = []
        device = model.device
        for split, kept, waves in data.readable(splits, self.eval_utterances):
            texts = [normalize(utterance.text) for utterance in kept]
            waves = [wave.to(device) for wave in waves]
            scores += score(model, self.listener.eval(), self.tokenizer.decode, split, waves, texts)
        return scores

    def table(self, scores: Sequence[Score]) -> Table:  # type: ignore[override]
        """One line for every split and way to text."""
        shown = Table(
            *("split", "words", "by", "WER %", "CER %", "codes", "used\n%", "per-\nplexity", "codes\n/s", "bit\n/s"),
            "RTF", box=box.SIMPLE, padding=0,
        )  # fmt: skip
        for s in scores:
            shown.add_row(s.split, str(s.words), s.decoder, *_cells(s), f"{s.real_time_factor:.3f}")
        return shown

    def uses(self, release: Path) -> list[str]:
        """Commands that take the release."""
        return [f"use it: speechkit codec encode FILE.wav -o FILE.skc --model {shlex.quote(str(release))}"]

    def release(  # type: ignore[override]
        self, folder: Path, config: dict[str, Any], model: TokenModel, scores: Sequence[Score]
    ) -> None:
        """Writes the release folder that `speechkit.load` reads; its card has a table where there are scores.

        It holds the tokenizer with the way back from codes to vectors; what recognised speech from them stays in the
        run's checkpoints.
        """
        card = (
            f"# {config['name']}\n\nSpeech to {model.codes_per_second:g} tokens a second, each one of {model.size}. "
            f"Trained by `python -m speechkit.train recipe={config['name']}`.\n"
        )
        if scores:
            names = "split | words | decoder | WER % | CER % | codes | used % | perplexity | codes/s | bit/s"
            card += "\nWords that a recogniser, trained along, hears in the tokens alone:\n"
            card += f"\n| {names} |\n|{'---|' * 10}\n"
        for s in scores:
            card += f"| {s.split} | {s.words} | {s.decoder} | {' | '.join(_cells(s))} |\n"
        job = {key: value for key, value in config.get("job", {}).items() if key != "tokenizer"}
        hub.save(folder, {**config, "job": job, "api": API}, model, None, card, half=self.half)


def _cells(s: Score) -> list[str]:
    return [
        f"{100 * s.wer:.1f}", f"{100 * s.cer:.1f}", str(s.codes), f"{100 * s.utilization:.1f}", f"{s.perplexity:.0f}",
        f"{s.codes_per_second:g}", f"{s.bits_per_second:.0f}",
    ]  # fmt: skip
