"""`python -m speechkit.export model=FOLDER out=FOLDER`: a model as ONNX graphs, checked against itself."""

if __name__ == "__main__":  # Ctrl-C while all of this is imported
    from speechkit.startup import begin

    begin()

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from speechkit import hub
from speechkit.commands.untrained import silent
from speechkit.configuration import entry_point, rename_words
from speechkit.construction import built, check_types
from speechkit.data.module import SpeechDataModule
from speechkit.errors import InputError
from speechkit.onnx.kind import kind_of, named
from speechkit.onnx.publish import Export, publish

Words = Sequence[str]
OPTIONS: dict[str, Any] = {
    "release": str | None, "untrained": str | None, "overrides": Words, "out": str, "precision": Words,
    "latencies_ms": Sequence[float] | None, "features": bool, "limit": int | None,
}  # fmt: skip
console = Console()
RECOGNISER = "recogniser"  # the noun of kinds that have look-aheads


@entry_point("export")
def _main(config: DictConfig) -> None:
    if OmegaConf.is_missing(config, "out"):
        raise InputError("name the folder of the export: out=FOLDER")
    check_types(config, OPTIONS)
    if config.untrained is not None and config.release is not None:
        raise InputError("name a model or a recipe, not both")
    found = hub.load(config.release) if config.untrained is None else silent(config.untrained, config.overrides)
    data: SpeechDataModule = built(config, "data", rate=found.rate, train=[], valid=[])
    precisions = [config.precision] if isinstance(config.precision, str) else list(config.precision)
    run(found, Path(config.out), precisions, config.latencies_ms, config.features, data, config.limit)


def run(
    model: Any,
    out: Path,
    precisions: Words,
    latencies_ms: Sequence[float] | None,
    features: bool,
    data: SpeechDataModule,
    limit: int | None,
) -> None:
    """Exports what `speechkit.load` gave, checks on the test splits of `data`, and says how the export is used.

    Raises:
        InputError: it cannot be exported so, or a check failed.
    """
    kind = kind_of(model)
    options: dict[str, Any] = {}
    if kind.noun == RECOGNISER:
        contexts = None if latencies_ms is None else [model.context(ms) for ms in latencies_ms]
        options = {"contexts": contexts, "front": not features}
    elif latencies_ms is not None or features:
        raise InputError(f"look-aheads and features can be chosen for recognisers alone, and this is a {kind.noun}")
    data.prepare_data()
    recordings = [_recordings(data, split, limit, spoken=kind.noun == RECOGNISER) for split in data.test]
    export: Export = named(kind.export)(model, recordings, **options)
    for place in publish(export, out, precisions, _say).values():
        _say(f"use it: {export.use.format(shlex.quote(str(place)))}")


def _recordings(data: SpeechDataModule, split: str, limit: int | None, spoken: bool) -> Any:
    """A split's name, waves (samples,) and texts; any folder with audio files will do where nothing need be spoken."""
    if spoken:
        kept, waves, _ = data.waves(split, limit)
        return split, waves, [utterance.text for utterance in kept]
    found = data.recordings(split)[:limit]
    return split, [torch.from_numpy(one.wave(data.rate)) for one in found], [one.text for one in found]


def main() -> None:
    """Exports a model."""
    rename_words(model="release", recipe="untrained")
    _main()


def _say(line: str) -> None:
    console.print(line, soft_wrap=True, highlight=False, markup=False)


if __name__ == "__main__":
    main()
