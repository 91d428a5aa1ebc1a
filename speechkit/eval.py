"""`python -m speechkit.eval model=FOLDER data.root=CORPUS data.test=[...]`: scores of a recogniser or a codec."""

if __name__ == "__main__":  # Ctrl-C while all of this is imported
    from speechkit.startup import begin

    begin()

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console

from speechkit import hub
from speechkit.asr.transcriber import Transcriber
from speechkit.checkpoints import writable
from speechkit.codecs.codec import Codec
from speechkit.commands.loading import use_threads
from speechkit.configuration import adapted, entry_point, rename_words
from speechkit.construction import built, check_types
from speechkit.data.module import SpeechDataModule
from speechkit.errors import InputError
from speechkit.evaluation.codec import CodecEvaluation
from speechkit.evaluation.kind import Evaluation
from speechkit.evaluation.recogniser import RecogniserEvaluation
from speechkit.files import replace

KINDS: dict[type, type[RecogniserEvaluation | CodecEvaluation]] = {  # by what `speechkit.load` gives
    Transcriber: RecogniserEvaluation,
    Codec: CodecEvaluation,
}
COMMON: dict[str, Any] = {"out": str, "device": str | None, "threads": int | None, "limit": int | None}
OPTIONS = COMMON | {name: hint for kind in KINDS.values() for name, hint in kind.options.items()}
COUNTS = ("beam", "limit", "threads", "codebooks")
console = Console()


@entry_point("eval")
def _main(config: DictConfig) -> None:
    config = _chosen(config)
    _check(config)
    evaluate(config, writable(Path(config.out)), HydraConfig.get().overrides.task)


def main() -> None:
    """Scores a model."""
    rename_words(model="release")
    _main()


def evaluate(config: DictConfig, out: Path, words: Sequence[str] = ()) -> list[Any]:
    """Scores as configured, by `words` of the command line; the output folder gets scores.json, scores.txt, pictures.

    Raises:
        InputError: the model or a split cannot be used, or an option is none for such a model.
    """
    if config.threads is not None:
        use_threads(config.threads)
    device = str(config.device if config.device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    evaluation = _evaluation(config, device, words)
    data: SpeechDataModule = built(config, "data", rate=evaluation.rate, train=[], valid=[])
    data.prepare_data()
    about = {"model": config.release, "device": device, **evaluation.about(), "skipped": evaluation.skipped}
    scores: list[Any] = []
    try:
        for split in data.test:
            for found in evaluation.scored(data, split, config.limit):
                scores += found
                files = write(out, about, scores, evaluation)
    except KeyboardInterrupt:
        if scores:
            _say(f"interrupted; what was scored before is in {out}")
        raise
    console.print(evaluation.table(scores))
    _say(f"{', '.join(files[:-1])} and {files[-1]} are in {out}")
    return scores


def _evaluation(config: DictConfig, device: str, words: Sequence[str]) -> Evaluation:
    """Of the kind that the model is of."""
    model = hub.load(config.release, device)
    kind = next((kind for api, kind in KINDS.items() if isinstance(model, api)), None)
    if kind is None:
        raise InputError(f"{config.release} is a {type(model).__name__}: only recognisers and codecs can be scored")
    for name in (word.partition("=")[0].lstrip("+~") for word in words):
        if name.partition(".")[0] not in {*COMMON, *kind.options, "release", "recipe", "data"}:
            raise InputError(f"{name} means nothing to the evaluation of a {type(model).__name__}")
    return kind(model, device, **{name: _plain(config[name]) for name in kind.options})


def _chosen(config: DictConfig) -> DictConfig:
    """Without what a recipe says of training; with the model that comes along where none is named."""
    config, _ = adapted(config, gpu=True)
    OmegaConf.set_struct(config, False)
    config.data = OmegaConf.masked_copy(config.data, [key for key in config.data if key not in ("rate", "seed")])
    if OmegaConf.is_missing(config, "release"):
        config.release = _default(HydraConfig.get().runtime.choices)
    return OmegaConf.masked_copy(config, [*OPTIONS, "release", "data"])


def _default(choices: Mapping[str, str | None]) -> str:
    """The model that comes along with speechkit for a recipe."""
    recipe = choices.get("recipe")
    if recipe is None:
        raise InputError("name a model: model=FOLDER, a .nemo file or a hub id")
    kind = {None: "asr", "recognition": "asr", "codec": "codec"}.get(choices.get("job"))
    if kind is None:
        raise InputError(
            f"no model of this kind comes with speechkit: name one with model=FOLDER, such as the release folder that "
            f"`speechkit train recipe={recipe}` writes"
        )
    return str(hub.default(kind))


def _check(config: DictConfig) -> None:
    """Refuses what can be seen to be wrong before anything is read."""
    if not isinstance(config.release, str):
        raise InputError(f"model must be a folder, a .nemo file or a hub id, got {config.release}")
    check_types(config, OPTIONS)
    for name in COUNTS:
        if config[name] is not None and config[name] < 1:
            raise InputError(f"{name} must be at least 1, got {config[name]}")
    if not config.data.test:
        raise InputError("name what to score: data.test=[...] holds no split")


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if isinstance(value, ListConfig) else value


def write(out: Path, about: dict[str, Any], scores: Sequence[Any], evaluation: Evaluation) -> list[str]:
    """The scores so far to the output folder: the names of the files."""
    text = io.StringIO()
    Console(file=text, width=160).print(evaluation.table(scores))
    files = {
        "scores.json": json.dumps({**about, "scores": [s.as_dict() for s in scores]}, indent=1).encode(),
        "scores.txt": text.getvalue().encode(),
        **evaluation.pictures(scores),
    }
    for name, content in files.items():
        replace(out / name, content)
    return list(files)


def _say(line: str) -> None:
    console.print(line, soft_wrap=True, highlight=False, markup=False)


if __name__ == "__main__":
    main()
