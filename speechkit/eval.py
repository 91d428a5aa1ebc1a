"""`python -m speechkit.eval model=FOLDER data.root=CORPUS data.test=[...]`: error rates and delays of a recogniser."""

if __name__ == "__main__":  # Ctrl-C while all of this is imported
    from speechkit.startup import begin

    begin()

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from speechkit.asr.evaluation import Score, check_choice, score
from speechkit.asr.latency import Aligner
from speechkit.asr.scores import plot, table
from speechkit.asr.transcriber import Transcriber
from speechkit.checkpoints import writable
from speechkit.commands.loading import recogniser, use_threads
from speechkit.configuration import entry_point, rename_words
from speechkit.construction import built, check_types
from speechkit.data.module import SpeechDataModule
from speechkit.errors import InputError
from speechkit.files import replace

Words = Sequence[str]
OPTIONS: dict[str, Any] = {
    "out": str, "device": str | None, "threads": int | None, "modes": Words,
    "decoders": Words | None, "latencies_ms": Sequence[float] | None, "beam": int, "limit": int | None, "delay": bool,
    "aligner": str | None,
}  # fmt: skip
console = Console()


@entry_point("eval")
def _main(config: DictConfig) -> None:
    if OmegaConf.is_missing(config, "release"):
        raise InputError("name a model: model=FOLDER, a .nemo file or a hub id")
    _check(config)
    evaluate(config, writable(Path(config.out)))


def main() -> None:
    """Scores a model."""
    rename_words(model="release")
    _main()


def evaluate(config: DictConfig, out: Path) -> list[Score]:
    """Scores as configured; the output folder gets scores.json, scores.txt and wer.png."""
    if config.threads is not None:
        use_threads(config.threads)
    device = str(config.device if config.device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    transcriber = recogniser(config.release, device)
    modes, decoders = _listed(config.modes) or [], _listed(config.decoders)
    check_choice(transcriber, modes, decoders, config.beam)
    latencies = _listed(config.latencies_ms)
    contexts = None if latencies is None else [transcriber.context(ms) for ms in latencies]
    aligner = _aligner(config, transcriber, device)
    data: SpeechDataModule = built(config, "data", rate=transcriber.rate, train=[], valid=[])
    data.prepare_data()
    scores: list[Score] = []
    skipped: dict[str, list[str]] = {}
    for split in data.test:
        kept, waves, skipped[split] = data.waves(split, config.limit)
        _say(f"{split}: {len(kept)} utterances, {len(skipped[split])} skipped")
        sound = [wave.to(device) for wave in waves]
        texts = [utterance.text for utterance in kept]
        ends = None if aligner is None else [aligner.word_ends(*pair) for pair in zip(sound, texts, strict=True)]
        if ends is not None and None in ends:
            _say(f"{split}: {ends.count(None)} utterances cannot be aligned and do not count for the delay")
        scores += score(transcriber, split, sound, texts, modes, decoders, contexts, config.beam, ends)
        write(out, {"model": config.release, "device": device, "skipped": skipped}, scores)
    console.print(table(scores))
    _say(f"scores.json, scores.txt and wer.png are in {out}")
    return scores


def _check(config: DictConfig) -> None:
    """Refuses what can be seen to be wrong before anything is read."""
    if not isinstance(config.release, str):
        raise InputError(f"model must be a folder, a .nemo file or a hub id, got {config.release}")
    check_types(config, OPTIONS)
    for name in ("beam", "limit", "threads"):
        if config[name] is not None and config[name] < 1:
            raise InputError(f"{name} must be at least 1, got {config[name]}")
    if not config.data.test:
        raise InputError("name what to score: data.test=[...] holds no split")


def _listed(value: Any) -> list[Any] | None:
    """A list, also of a word alone."""
    return None if value is None else [value] if isinstance(value, str) else list(value)


def write(out: Path, about: dict[str, Any], scores: Sequence[Score]) -> None:
    """The scores so far to the output folder."""
    record = {**about, "scores": [s.as_dict() for s in scores]}
    replace(out / "scores.json", json.dumps(record, indent=1).encode())
    text = io.StringIO()
    Console(file=text, width=160).print(table(scores))
    replace(out / "scores.txt", text.getvalue().encode())
    replace(out / "wer.png", plot(scores))


def _say(line: str) -> None:
    console.print(line, soft_wrap=True, highlight=False, markup=False)


def _aligner(config: DictConfig, transcriber: Transcriber, device: str) -> Aligner | None:
    """What aligns words, where streams are measured at all."""
    if not config.delay or "streaming" not in (_listed(config.modes) or []) or not transcriber.latencies_ms:
        return None
    if config.aligner is None:
        return Aligner(transcriber) if transcriber.model.ctc is not None else None
    other = recogniser(config.aligner, device)
    if other.rate != transcriber.rate:
        raise InputError(f"the aligner takes {other.rate} Hz and the model {transcriber.rate} Hz: they must agree")
    return Aligner(other)


if __name__ == "__main__":
    main()
