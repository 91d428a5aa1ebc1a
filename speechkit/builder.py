"""Objects from a configuration that anybody may have written: classes by allow-list, values of the annotated types."""

import importlib
import inspect
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode

from speechkit.errors import InputError

# A configuration may come from anybody: it can name classes of these packages and nothing else.
BUILDABLE = ("asr", "tts", "waveform", "separation", "codecs", "nn", "features", "fbank", "low_frame_rate", "text")
FACTORIES = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.arange}
FEW = 4096  # numbers of a tensor that is made where only its size is wanted
DIRECTIONS = ("_target_", "_convert_", "_recursive_")  # what a recipe says to Hydra, not to the class
MAX_VALUES = 1_000_000
MAX_DEPTH = 100
MAX_PARTS = 10_000  # of a network, layers and tensors; the largest published ones have a third of that
MAX_BITS = 63  # of a whole number


def check_values(config: Any, source: str) -> None:
    """Refuses configurations of millions of values (YAML aliases can nest), and numbers that no tensor can hold."""
    stack: list[tuple[str, Any, int]] = [("it", config, 0)]
    count = 0
    while stack:
        name, value, depth = stack.pop()
        count += 1
        if count > MAX_VALUES or depth > MAX_DEPTH:
            raise InputError(
                f"{source} unfolds to more than {MAX_VALUES} values or {MAX_DEPTH} levels: not a model's configuration"
            )
        if isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise InputError(f"{source} cannot be used: {name} is a whole number of more than {MAX_BITS} bits")
        if isinstance(value, Mapping):
            for key, inner in value.items():
                name = key[:50] if isinstance(key, str) else "a value"
                stack += [("a key", key, depth + 1), (name, inner, depth + 1)]
        elif isinstance(value, (list, tuple, set)):
            stack += [(name, inner, depth + 1) for inner in value]


def target(name: Any) -> type:
    """The class that a ``_target_`` names; only those of `BUILDABLE` packages, so that no configuration runs code."""
    name = str(name)[:200]
    module, _, attribute = name.rpartition(".")
    parts = module.split(".")
    if parts[0] != "speechkit" or len(parts) < 2 or parts[1] not in BUILDABLE:
        raise InputError(f"a configuration may only build classes of speechkit's models, got _target_: {name}")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise InputError(f"this version of speechkit has no {name} ({error})") from error
    if not isinstance(found, type) or found.__module__ != module:
        raise InputError(f"this version of speechkit has no class {name}")
    return found


def build(config: Any, **given: Any) -> Any:
    """Builds what a configuration describes, inner ``_target_``s first; `given` are further arguments.

    Raises:
        InputError: a class that may not be built, an argument of another type than the class asks for, or one that it
            refuses.
    """
    if isinstance(config, Mapping):
        arguments = {str(key): build(value) for key, value in config.items() if key not in DIRECTIONS}
        return _made(config["_target_"], {**arguments, **given}) if "_target_" in config else arguments
    if isinstance(config, (list, tuple)):
        return [build(value) for value in config]
    return config


def build_network(config: Any) -> nn.Module:
    """Builds a network; raises as `build`."""
    model = build(config)
    if not isinstance(model, nn.Module):
        raise InputError(f"the configuration's model must be a network, got {type(model).__name__}")
    return model


class _WithoutNumbers(TorchFunctionMode):
    """Large tensors are made on the device ``meta``, where an absurd size costs no memory, and not filled.

    Small ones, such as windows, are computed as ever: on ``meta`` PyTorch loads its compiler for that, for seconds.
    """

    def __torch_function__(self, made: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if made in FACTORIES and _count(made, args, kwargs) > FEW:
            kwargs = {**kwargs, "device": "meta"}
        name = getattr(made, "__name__", "")
        fills = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
        filled = args[0] if args else kwargs.get("tensor")
        if fills and isinstance(filled, torch.Tensor) and filled.is_meta:
            return filled
        return made(*args, **kwargs)


def _count(made: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> float:
    """Numbers of the tensor that a function of `FACTORIES` would make."""
    if made is torch.arange:
        first, end, step = (*args, 1)[:3] if len(args) > 1 else (0, *args, 1)[:3]
        return abs((end - first) / (step or 1))
    size = kwargs.get("size", args)
    size = size[0] if size and isinstance(size[0], Sequence) else size[:1] if made is torch.full else size
    return math.prod(size)


def shapes(config: Any) -> dict[str, torch.Size]:
    """Names and shapes of a model's tensors, without making the large ones."""
    made = 0

    def count(*_: Any) -> None:
        nonlocal made
        made += 1
        if made > MAX_PARTS:
            raise InputError(f"the configuration describes a network of more than {MAX_PARTS} layers and tensors")

    hooks = [
        register(count)
        for register in (register_module_module_registration_hook, register_module_parameter_registration_hook)
    ]
    try:
        with _WithoutNumbers():
            model = build_network(config)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _made(name: Any, arguments: dict[str, Any]) -> Any:
    made = target(name)
    try:
        for key, kind in _annotations(made).items():
            if key in arguments and not fits(arguments[key], kind):
                wanted = inspect.formatannotation(kind).replace("collections.abc.", "")
                got = " ".join(repr(arguments[key])[:60].split())
                raise InputError(f"{name} needs {key} to be {wanted}, got {got}")
        return made(**arguments)
    except InputError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError, MemoryError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__  # torch adds the stack of its own calls
        raise InputError(f"{name} cannot be built from this configuration: {reason}") from error


def _annotations(made: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(made.__init__)  # type: ignore[misc]
    except NameError:  # of a class that only type checkers import
        return {}


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotated type, as far as configurations have types; numbers must be finite."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, choice) for choice in inner)
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool) and math.isfinite(value)
    if origin in (list, tuple, Sequence):
        return isinstance(value, (list, tuple)) and all(fits(part, inner[0]) for part in value)
    if isinstance(kind, type) and not getattr(kind, "_is_protocol", False):
        return isinstance(value, kind)
    return True
