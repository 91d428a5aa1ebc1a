"""`python -m speechkit.export model=FOLDER out=FOLDER`: a recogniser as ONNX graphs, checked against the model."""

if __name__ == "__main__":  # Ctrl-C while all of this is imported
    from speechkit.startup import begin

    begin()

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from speechkit.asr.transcriber import Transcriber
from speechkit.commands.loading import recogniser
from speechkit.commands.untrained import silent
from speechkit.configuration import entry_point, rename_words
from speechkit.construction import built, check_types
from speechkit.data.module import SpeechDataModule
from speechkit.errors import InputError
from speechkit.onnx.release import export

Words = Sequence[str]
OPTIONS: dict[str, Any] = {
    "release": str | None, "untrained": str | None, "overrides": Words, "out": str, "precision": Words,
    "latencies_ms": Sequence[float] | None, "features": bool, "limit": int | None,
}  # fmt: skip
console = Console()


@entry_point("export")
def _main(config: DictConfig) -> None:
    if OmegaConf.is_missing(config, "out"):
        raise InputError("name the folder of the export: out=FOLDER")
    check_types(config, OPTIONS)
    if config.untrained is not None and config.release is not None:
        raise InputError("name a model or a recipe, not both")
    found = recogniser(config.release) if config.untrained is None else silent(config.untrained, config.overrides)
    data: SpeechDataModule = built(config, "data", rate=found.rate, train=[], valid=[])
    precisions = [config.precision] if isinstance(config.precision, str) else list(config.precision)
    run(found, Path(config.out), precisions, config.latencies_ms, not config.features, data, config.limit)


def run(
    transcriber: Transcriber,
    out: Path,
    precisions: Words,
    latencies_ms: Sequence[float] | None,
    front: bool,
    data: SpeechDataModule,
    limit: int | None,
) -> None:
    """Exports, checks on the test splits of `data`, and says how the export is used."""
    contexts = None if latencies_ms is None else [transcriber.context(ms) for ms in latencies_ms]
    data.prepare_data()
    recordings = []
    for split in data.test:
        kept, waves, _ = data.waves(split, limit)
        recordings.append((split, waves, [utterance.text for utterance in kept]))
    for place in export(transcriber, out, precisions, contexts, front, recordings, _say).values():
        _say(f"use it: speechkit transcribe --stream --model {shlex.quote(str(place))} FILE.wav")


def main() -> None:
    """Exports a model."""
    rename_words(model="release", recipe="untrained")
    _main()


def _say(line: str) -> None:
    console.print(line, soft_wrap=True, highlight=False, markup=False)


if __name__ == "__main__":
    main()
