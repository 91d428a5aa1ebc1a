"""Objects as the configuration describes them, and refusals that name the option where they cannot be had."""

import importlib
import inspect
import math
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError

from speechkit.builder import fits
from speechkit.errors import InputError

# What Lightning has made when training begins: the functions that make it, and the part of the configuration it is of.
MAKERS = {
    "configure_optimizers": "optim",
    "train_dataloader": "data",
    "val_dataloader": "data",
    "setup_data": "trainer",
}
NOUNS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", NoneType: "null"}
PLURALS = {int: "a list of whole numbers", float: "a list of numbers", str: "a list of texts"}


def built(config: DictConfig, key: str, **given: Any) -> Any:
    """What the part `key` of a configuration describes; `given` are further arguments. Raises as `building`."""
    with building(key):
        return instantiate(OmegaConf.select(config, key), **given)


@contextmanager
def building(key: str) -> Iterator[None]:
    """Names the part of a configuration from which nothing can be built.

    Raises:
        InputError: with the part at fault, which may lie deeper than `key`, and the reason.
    """
    try:
        yield
    except InputError:
        raise
    except InstantiationException as error:
        deeper = re.search(r"full_key: (\S+)", str(error))
        raise refusal(deeper[1] if deeper else key, error.__cause__ or error) from error
    except Exception as error:
        if isinstance(error, (ValueError, TypeError, *_misconfigurations())):
            raise refusal(key, error) from error
        raise


def _misconfigurations() -> tuple[type[Exception], ...]:
    """Lightning's class for what cannot be had, where it was imported: that takes seconds, and a server needs none."""
    module = sys.modules.get("lightning.pytorch.utilities.exceptions")
    return () if module is None else (module.MisconfigurationException,)


def refusal(key: str, cause: BaseException) -> InputError:
    """What to raise where a part of the configuration cannot be built: its name and the last line of the cause."""
    said = str(cause).strip().splitlines()
    named = isinstance(cause, (ValueError, TypeError, *_misconfigurations())) and said
    reason = said[-1] if named else ": ".join([type(cause).__name__, *said[-1:]])
    return InputError(f"{key} cannot be built as configured: {reason}")


def made_for(error: BaseException) -> str | None:
    """The part of the configuration that was being built in `Trainer.fit` as it failed; None: it was training."""
    names = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
    found = next((MAKERS[name] for name in reversed(names) if name in MAKERS), None)
    return "trainer" if found is None and isinstance(error, _misconfigurations()) else found


def check_types(config: DictConfig, hints: Mapping[str, Any], key: str = "") -> None:
    """Compares every option with what the class that it is for takes, before anything is built.

    Args:
        config: composed.
        hints: of the options that are for no class, their types.
        key: where `config` lies in the whole.

    Raises:
        InputError: an option is no number, list ... where one is needed.
    """
    for name in map(str, config):
        if OmegaConf.is_missing(config, name):
            continue
        try:
            value = config[name]
        except InterpolationToMissingValueError:  # of what is known later, such as the size of the vocabulary
            continue
        elsewhere = OmegaConf.is_interpolation(config, name)
        full = _origin(config, name) if elsewhere else f"{key}.{name}" if key else name
        plain = OmegaConf.to_container(value) if isinstance(value, ListConfig) else value
        if isinstance(value, DictConfig):
            if not elsewhere:
                check_types(value, _hints(value["_target_"]) if "_target_" in value else {}, full)
        elif name in hints and not _takes(hints[name], plain):
            shown = "null" if plain is None else repr(plain)
            raise InputError(f"{full} must be {' or '.join(_nouns(hints[name]))}, got {shown}")


def _origin(config: DictConfig, name: str) -> str:
    """The option from which another one has its value, as ``${seed}`` says."""
    raw = OmegaConf.to_yaml(OmegaConf.masked_copy(config, name)).partition(":")[2].strip()
    return raw.removeprefix("${").removesuffix("}")


def _hints(target: str) -> dict[str, Any]:
    """The annotated arguments of what a ``_target_`` names; none where that cannot be said."""
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
        return get_type_hints(found.__init__ if inspect.isclass(found) else found)
    except Exception:  # what is wrong with it is said when it is built
        return {}


def _takes(hint: Any, value: Any) -> bool:
    """Whether a value may stand for an annotation: a word may for a list of one, 1e4 for 10000, inf for a number."""
    if isinstance(value, list) and any(isinstance(part, dict) for part in value):
        return True  # objects to be built
    if isinstance(value, float):
        value = 0.5 if math.isinf(value) else int(value) if value.is_integer() else value
    try:
        return fits(value, hint) or (isinstance(value, str) and fits([value], hint))
    except TypeError:  # of an annotation that nothing can be compared with, such as Any
        return True


def _nouns(hint: Any) -> list[str]:
    """What an annotation takes, in words."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        nouns = list(dict.fromkeys(noun for choice in get_args(hint) for noun in _nouns(choice)))
        return [noun for noun in nouns if not noun.startswith("made")] or nouns  # no classes beside plain values
    if origin is Literal:
        return [f"one of {', '.join(map(repr, get_args(hint)))}"]
    kind = origin or hint
    if kind in NOUNS:
        return [NOUNS[kind]]
    if not inspect.isclass(kind) or getattr(kind, "_is_protocol", False):
        return ["made by a _target_"]
    if issubclass(list, kind) or kind is tuple:
        inner = get_args(hint)
        if not inner or inner[0] in PLURALS:
            return [PLURALS[inner[0]] if inner else "a list"]
        [noun, *_] = _nouns(inner[0])
        return [noun.replace("a list", "a list of lists", 1) if noun.startswith("a list") else "a list"]
    return [f"made by a _target_ ({kind.__name__})"]
