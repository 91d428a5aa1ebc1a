"""What training a recogniser needs around its task: tokenizer, checks of the corpus, scores, release."""

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from speechkit import hub
from speechkit.asr.evaluation import Score, score
from speechkit.asr.model import Recognizer
from speechkit.asr.scores import latency, table
from speechkit.asr.transcriber import Transcriber
from speechkit.data.module import SpeechDataModule
from speechkit.data.utterance import allowed
from speechkit.errors import InputError
from speechkit.release import API
from speechkit.text import Tokenizer, normalize, steps_for_ctc, train_characters, train_sentencepiece
from speechkit.token_list import train_list
from speechkit.tokenizers import load_tokenizer

log = logging.getLogger(__name__)


class RecognitionJob:
    """Prepares, scores and releases a recogniser for `speechkit.train`.

    Args:
        tokenizer: ``unigram``, ``bpe``, ``characters``, ``list`` (characters of scripts without spaces, letters of
            others), or a folder that holds a tokenizer.
        size: pieces, for ``unigram`` and ``bpe``.
        step_ms: milliseconds of audio per encoder step.
        ctc: whether the model has a CTC head, whose targets must fit into the steps.
        max_misfits: part of the training utterances that may be too fast for their tokens; they are left out.
        eval_utterances: at most so many utterances of a split are scored, null for all.
        half: release the weights in fp16.
    """

    api = API

    def __init__(
        self,
        tokenizer: str = "unigram",
        size: int | None = 1024,
        step_ms: float = 80.0,
        ctc: bool = True,
        max_misfits: float = 0.01,
        eval_utterances: int | None = None,
        half: bool = False,
    ) -> None:
        self.kind, self.size, self.step_ms, self.ctc = tokenizer, size, step_ms, ctc
        self.max_misfits, self.eval_utterances, self.half = max_misfits, eval_utterances, half
        self._tokenizer: Tokenizer | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """What `prepare` found or trained, or the tokenizer of the model that a run starts from."""
        if self._tokenizer is None:
            raise RuntimeError("the job has no tokenizer yet: prepare() comes first")
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def prepare(self, data: SpeechDataModule, out: Path) -> dict[str, Any]:
        """Tokenizer from the training text, or the run's own where it goes on; returns what the config lacks."""
        data.utterances([*data.valid, *data.test])  # a split that is not there is said before hours of training
        if not data.train:
            raise InputError("name what to train on: data.train=[...] holds no split")
        folder = out / "tokenizer"
        if self._tokenizer is not None:  # that of the model which the run starts from
            tokenizer = self._tokenizer
        elif folder.is_dir():
            tokenizer = load_tokenizer(folder)
        elif Path(self.kind).is_dir():
            tokenizer = load_tokenizer(Path(self.kind))
        elif self.kind == "characters":
            tokenizer = train_characters(data.texts(data.train), folder)
        elif self.kind == "list":
            tokenizer = train_list(data.texts(data.train), folder)
        else:
            tokenizer = train_sentencepiece(data.texts(data.train), folder, self.size or 1024, self.kind)
        tokenizer.save(folder)
        self.tokenizer = data.tokenizer = tokenizer
        data.exclude(self.misfits(data, tokenizer))
        return {"vocab_size": tokenizer.vocab_size}

    def misfits(self, data: SpeechDataModule, tokenizer: Tokenizer) -> set[str]:
        """Ids of training utterances that cannot be a target: letters that the tokenizer lacks, and too many tokens.

        CTC cannot align more tokens than there are steps, which are fewest at the fastest speed.

        Raises:
            InputError: more of them than `data.max_bad` or `max_misfits`.
        """
        fastest = max(getattr(data.transform, "speeds", None) or (1.0,))
        utterances, misfits, worst = data.utterances(data.train), set(), ("", 0, 0)
        unspelled: dict[str, str] = {}
        for utterance in utterances:
            try:
                needed = steps_for_ctc(tokenizer.encode(utterance.text))
            except InputError as error:
                unspelled[utterance.id] = str(error)
                continue
            steps = int(utterance.seconds / fastest * 1000 / self.step_ms)
            if self.ctc and needed > steps:
                misfits.add(utterance.id)
                worst = max(worst, (utterance.id, needed, steps), key=lambda w: w[1] - w[2])
        if len(unspelled) > allowed(len(utterances), data.max_bad):
            name, reason = next(iter(unspelled.items()))
            raise InputError(
                f"{len(unspelled)} of {len(utterances)} training texts have no tokens, as {name}: {reason}"
            )
        if len(misfits) > self.max_misfits * len(utterances):
            raise InputError(
                f"{len(misfits)} of {len(utterances)} training utterances have more tokens than the encoder has steps "
                f"(worst: {worst[0]}, {worst[1]} tokens in {worst[2]} steps of {self.step_ms:g} ms), which CTC cannot "
                "align: use larger pieces (job.tokenizer=unigram job.size=1024) "
                "or a transducer alone (model.ctc=null job.ctc=false)"
            )
        return misfits | set(unspelled)

    def task_arguments(self) -> dict[str, Any]:
        """What the task's constructor takes from here."""
        return {"tokenizer": self.tokenizer}

    def evaluate(self, model: Recognizer, data: SpeechDataModule, splits: Sequence[str]) -> list[Score]:
        """Scores of every split, head and look-ahead, offline and streaming; a split that cannot be read has none."""
        transcriber, scores = Transcriber(model, self.tokenizer), []
        device = model.device
        for split, kept, waves in data.readable(splits, self.eval_utterances):
            texts = [normalize(utterance.text) for utterance in kept]
            scores += score(transcriber, split, [wave.to(device) for wave in waves], texts)
        return scores

    def table(self, scores: Sequence[Score]) -> Table:
        """The scores for the terminal."""
        return table(scores)

    def uses(self, release: Path) -> list[str]:
        """Commands that take the release."""
        return [
            f"use it: speechkit transcribe --model {shlex.quote(str(release))} FILE.wav",
            f"serve it: speechkit serve {shlex.quote(f'model={release}')}",
        ]

    def release(self, folder: Path, config: dict[str, Any], model: Recognizer, scores: Sequence[Score]) -> None:
        """Writes the release folder that `speechkit.load` reads; its card has a table where there are scores."""
        card = f"# {config['name']}\n\nTrained by `python -m speechkit.train recipe={config['name']}`.\n"
        if scores:
            card += "\n| split | decoder | mode | latency ms | WER % | CER % | words |\n|---|---|---|---|---|---|---|\n"
        for s in scores:
            rates = f"{100 * s.wer:.1f} | {100 * s.cer:.1f}"
            card += f"| {s.split} | {s.decoder} | {s.mode} | {latency(s)} | {rates} | {s.words} |\n"
        job = {key: value for key, value in config.get("job", {}).items() if key != "tokenizer"}
        config = {**config, "job": job}  # what the tokenizer is lies in the release; where it lay is of one machine
        hub.save(folder, config, model, self.tokenizer, card, half=self.half)
