"""Hydra configuration shared by the entry points: helpful refusals, and what the embedded corpus changes."""

import difflib
import errno
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from speechkit.errors import InputError
from speechkit.startup import CLOSED, INTERRUPTED, ctrl_c_raises, printing

REFUSED = 2  # exit code for bad input
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a disk says that takes no more
ABOUT = {"--help", "-h", "--hydra-help", "--version", "--shell-completion", "-sc"}  # flags that run nothing


def entry_point(name: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Like `hydra.main`, with one readable sentence and exit code 2 for bad input, and 130 for Ctrl-C.

    A run of a sweep that is refused leaves the others to run. HYDRA_FULL_ERROR=1 shows where the sentence comes from.
    """
    refused: list[int] = []  # runs of a sweep

    def decorate(function: Callable[[DictConfig], None]) -> Callable[[], None]:
        def guarded(config: DictConfig) -> None:
            threading.excepthook = _thread_failed
            ctrl_c_raises()
            job = HydraConfig.get()
            try:
                with _one_sentence():
                    function(config)
            except SystemExit as ended:
                if ended.code != REFUSED or job.mode != RunMode.MULTIRUN:
                    raise
                refused.append(job.job.num)

        def main() -> None:
            refused.clear()
            with printing(), _one_sentence():
                if not ABOUT & set(sys.argv[1:]):
                    _refuse_bare_words(sys.argv[1:])
                    words = [word for word in sys.argv[1:] if "=" in word or word.startswith("~")]
                    check(name, words, sweep=not {"-m", "--multirun"}.isdisjoint(sys.argv))
                elif name == "train" and not any(word.startswith("recipe=") for word in sys.argv[1:]):
                    print(f"speechkit train recipe=NAME [option=value ...]\n\nrecipes: {', '.join(options('recipe'))}")
                    print("speechkit train recipe=NAME --help lists the options of a recipe, --cfg job their values.")
                    return
                hydra.main(version_base="1.3", config_path="pkg://speechkit.conf", config_name=name)(guarded)()
                if refused:
                    raise InputError(f"of the sweep these runs were refused: {', '.join(map(str, refused))}")

        return main

    return decorate


def _refuse_bare_words(words: list[str]) -> None:
    for before, word in zip(["", *words], words, strict=False):
        if not word.startswith(("-", "~")) and "=" not in word and not before.startswith("-"):
            raise InputError(f"{word!r} is no option: options are name=value")


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Ends the process with a sentence for bad input, a wrong configuration and a full disk, silently for Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:  # whoever read the output has enough
        raise SystemExit(CLOSED) from None
    except (InputError, OmegaConfBaseException, OSError) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or (isinstance(error, OSError) and error.errno not in FULL):
            raise
        raise SystemExit(_said(error)) from None


def rename_words(**names: str) -> None:
    """Calls options of the command line what the configuration calls them.

    Hydra takes ``model=`` for a choice in the config group of that name, also where nothing is composed of that group.
    """
    for i, word in enumerate(sys.argv[1:], 1):
        name, equals, value = word.partition("=")
        if equals:
            sys.argv[i] = f"{names.get(name, name)}={value}"


def _thread_failed(args: threading.ExceptHookArgs) -> None:
    """A full disk is what the main thread says, once; it meets it as well."""
    if not (isinstance(args.exc_value, OSError) and args.exc_value.errno in FULL):
        threading.__excepthook__(args)


def _said(error: Exception) -> int:
    sentence = str(error).splitlines()[0] if isinstance(error, OmegaConfBaseException) else error
    print(f"error: {sentence}", file=sys.stderr)
    return REFUSED


def check(name: str, overrides: list[str], sweep: bool = False) -> None:
    """Composes once to refuse what does not exist, naming what comes close; lists of values only in a sweep.

    Raises:
        InputError: an unknown recipe, option or value.
    """
    single = [word for word in overrides if not word.startswith("hydra/") and not (sweep and "," in word)]
    try:
        with hydra.initialize_config_module("speechkit.conf", version_base="1.3"):
            hydra.compose(name, single)
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: a group's choice is no text
        raise InputError(_explain(name, str(error), single)) from error


def _explain(name: str, message: str, overrides: list[str]) -> str:
    for group, _, choice in [word.partition("=") for word in overrides] if "Config group override" in message else []:
        if options(group) and choice not in options(group):
            message = f"Could not find '{group}/{choice}'"
    missing = re.search(r"Could not find '([^']+)/([^'/]*)'", message)
    if missing:
        group, choice = missing.groups()
        return f"there is no {group} {choice!r}{_near(choice, options(group))}; there are: {', '.join(options(group))}"
    unknown = re.search(r"Key '([^']+)' is not in struct|Could not override '([^']+)'", message)
    if unknown:
        key = next(part for part in unknown.groups() if part)
        where = re.search(r"full_key: (\S+)", message)
        names = [word.split("=")[0].lstrip("+~") for word in overrides]
        full = where[1] if where else next((name for name in names if name.endswith(key)), key)
        return f"there is no option {full!r}{_near(full, _keys(name, overrides))}"
    if "recipe" in message and ("mandatory" in message or "must specify" in message.lower()):
        return f"name a recipe: recipe=NAME with one of {', '.join(options('recipe'))}"
    return message.strip().splitlines()[0]


def _near(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f" (did you mean {', '.join(close)}?)" if close else ""


def options(group: str) -> list[str]:
    """The choices of a config group."""
    from importlib.resources import files

    folder = files("speechkit.conf").joinpath(*group.split("/"))
    return (
        sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))
        if folder.is_dir()
        else []
    )


def _keys(name: str, overrides: list[str]) -> list[str]:
    """Dotted names of every option."""
    recipe = [word for word in overrides if word.startswith("recipe=")]

    def walk(node: Any, prefix: str) -> list[str]:
        if not isinstance(node, dict):
            return [prefix]
        return [prefix] * bool(prefix) + [
            key for k, v in node.items() for key in walk(v, f"{prefix}.{k}" if prefix else str(k))
        ]

    try:
        with hydra.initialize_config_module("speechkit.conf", version_base="1.3"):
            return walk(OmegaConf.to_container(hydra.compose(name, recipe)), "")
    except (HydraException, OmegaConfBaseException):
        return []


def adapted(config: DictConfig, gpu: bool) -> tuple[DictConfig, list[str]]:
    """The recipe's `cpu` block where there is no GPU, its `mini` block where no corpus is given; the command line wins.

    Returns the config and the lines that say what changed.
    """
    blocks = {"cpu": "no GPU", "mini": "no data.root given: using the embedded corpus"}
    apply = {"cpu": not gpu, "mini": config.data.root is None}
    chosen = [name for name in blocks if apply[name] and config.get(name)]
    if not chosen:
        return config, []
    words = [word.lstrip("+") for word in HydraConfig.get().overrides.task if not word.startswith("~")]
    words.sort(key=lambda word: "." in word.split("=")[0])  # choices of groups first, as Hydra takes them
    own = OmegaConf.from_dotlist(
        [word for word in words if "/" not in word.split("=")[0] and not word.startswith("recipe=")]
    )
    OmegaConf.set_struct(config, False)
    groups = {key for key in own if isinstance(config.get(key), DictConfig) and not isinstance(own[key], DictConfig)}
    own = OmegaConf.masked_copy(own, [str(key) for key in own if key not in groups])
    for name in chosen:
        config = _overlaid(config, config[name])
    config.merge_with(own)
    notes = []
    for name in chosen:
        applied = OmegaConf.to_yaml(OmegaConf.create(_values_at(config[name], config)))
        notes += [f"{blocks[name]}; the recipe's {name} block applies:", *applied.splitlines()]
    return config, notes


def _values_at(block: DictConfig, config: DictConfig) -> dict[str, Any]:
    """The options that a block names, as they are now: the command line and later blocks may have changed them."""
    found: dict[str, Any] = {}
    for name in map(str, block):
        inner, now = block._get_node(name), config._get_node(name)
        both = isinstance(inner, DictConfig) and isinstance(now, DictConfig)
        found[name] = _values_at(inner, now) if both else now  # type: ignore[arg-type]
    return found


def _overlaid(config: DictConfig, change: DictConfig) -> DictConfig:
    """`change` merged over `config`; a part that names another class (`_target_`) replaces what was there."""
    for name, new in change.items_ex(resolve=False):
        key = str(name)
        old = None if OmegaConf.is_interpolation(config, key) else config.get(key)
        both = isinstance(old, DictConfig) and isinstance(new, DictConfig)
        if both and new.get("_target_", old.get("_target_")) == old.get("_target_"):  # type: ignore[union-attr]
            _overlaid(old, new)  # type: ignore[arg-type]
        else:
            config[key] = new
    return config
