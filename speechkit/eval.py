"""`python -m speechkit.eval model=FOLDER data.root=CORPUS data.test=[...]`: error rates and delays of a recogniser."""

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from speechkit import hub
from speechkit.asr.evaluation import Score, score
from speechkit.asr.latency import Aligner
from speechkit.asr.scores import plot, table
from speechkit.asr.transcriber import Transcriber
from speechkit.checkpoints import writable
from speechkit.configuration import entry_point
from speechkit.data.module import SpeechDataModule
from speechkit.data.utterance import Report, Utterance
from speechkit.errors import InputError

console = Console()


class Skipped(logging.Handler):
    """Keeps the sentences about utterances that cannot be used."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.sentences: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Takes the warnings that say so."""
        sentence = record.getMessage()
        if sentence.startswith("skipped: "):
            self.sentences.append(sentence.removeprefix("skipped: "))


@entry_point("eval")
def _main(config: DictConfig) -> None:
    if OmegaConf.is_missing(config, "release"):
        raise InputError("name a model: model=FOLDER, a .nemo file or a hub id")
    evaluate(config, writable(Path(config.out)))


def main() -> None:
    """Scores a model."""
    # Hydra takes the word model= for a choice in the config group of that name, which eval does not compose.
    sys.argv[1:] = [
        "release" + word.removeprefix("model") if word.startswith("model=") else word for word in sys.argv[1:]
    ]
    _main()


def evaluate(config: DictConfig, out: Path) -> list[Score]:
    """Scores as configured; the output folder gets scores.json, scores.txt and wer.png."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    transcriber = _recogniser(config.release, device)
    aligner = _aligner(config, transcriber, device)
    data: SpeechDataModule = instantiate(config.data, rate=transcriber.rate, train=[], valid=[])
    data.prepare_data()
    contexts = None if config.latencies_ms is None else [transcriber.context(ms) for ms in config.latencies_ms]
    scores: list[Score] = []
    skipped: dict[str, list[str]] = {}
    for split in data.test:
        kept, waves, skipped[split] = load(data, split, config.limit)
        _say(f"{split}: {len(kept)} utterances, {len(skipped[split])} skipped")
        sound = [wave.to(device) for wave in waves]
        texts = [utterance.text for utterance in kept]
        ends = None if aligner is None else [aligner.word_ends(*pair) for pair in zip(sound, texts, strict=True)]
        if ends is not None and None in ends:
            _say(f"{split}: {ends.count(None)} utterances cannot be aligned and do not count for the delay")
        scores += score(transcriber, split, sound, texts, config.modes, config.decoders, contexts, config.beam, ends)
    write(out, {"model": str(config.release), "device": device, "skipped": skipped}, scores)
    return scores


def load(
    data: SpeechDataModule, split: str, limit: int | None
) -> tuple[list[Utterance], list[torch.Tensor], list[str]]:
    """Utterances of a split, their waves, and a sentence for each that cannot be used.

    Raises:
        InputError: there is no such split, or more of it than `max_bad` cannot be used.
    """
    handler, logger = Skipped(), logging.getLogger("speechkit.data")
    logger.addHandler(handler)
    try:
        report, waves = Report([], []), []
        for utterance in data.utterances([split])[:limit]:
            try:
                waves.append(torch.from_numpy(utterance.wave(data.rate)))
                report.good.append(utterance)
            except InputError as error:
                report.bad.append(str(error))
        return report.within(data.max_bad, split), waves, handler.sentences
    finally:
        logger.removeHandler(handler)


def write(out: Path, about: dict[str, Any], scores: Sequence[Score]) -> None:
    """The table to the terminal, and everything to the output folder."""
    (out / "scores.json").write_text(json.dumps({**about, "scores": [s.as_dict() for s in scores]}, indent=1))
    with (out / "scores.txt").open("w") as file:
        Console(file=file, width=160).print(table(scores))
    plot(scores, out / "wer.png")
    console.print(table(scores))
    _say(f"scores.json, scores.txt and wer.png are in {out}")


def _say(line: str) -> None:
    console.print(line, soft_wrap=True, highlight=False, markup=False)


def _recogniser(name: str, device: str) -> Transcriber:
    found = hub.load(name, device)
    if not isinstance(found, Transcriber):
        raise InputError(f"speechkit eval scores recognisers, and {name} is none")
    return found


def _aligner(config: DictConfig, transcriber: Transcriber, device: str) -> Aligner | None:
    """What aligns words, where streams are measured at all."""
    if not config.delay or "streaming" not in config.modes or not transcriber.latencies_ms:
        return None
    if config.aligner is None:
        return Aligner(transcriber) if transcriber.model.ctc is not None else None
    other = _recogniser(config.aligner, device)
    if other.rate != transcriber.rate:
        raise InputError(f"the aligner takes {other.rate} Hz and the model {transcriber.rate} Hz: they must agree")
    return Aligner(other)


if __name__ == "__main__":
    main()
