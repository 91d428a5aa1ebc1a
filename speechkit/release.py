"""A model as configuration, tensors and tokenizer: what release folders hold and importers translate to."""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from speechkit.errors import InputError

# A configuration may come from anybody: it can name classes of these packages and nothing else.
BUILDABLE = ("asr", "tts", "waveform", "separation", "codecs", "nn", "features", "text")
API = "speechkit.asr.transcriber.Transcriber"
DIRECTIONS = ("_target_", "_convert_", "_recursive_")  # what a recipe says to Hydra, not to the class
MAX_NODES = 1_000_000


class Release(NamedTuple):
    """A model that is not built yet."""

    source: str  # where it comes from, for messages
    config: dict[str, Any]  # ``model`` and ``tokenizer`` with ``_target_``s, ``api``: the class that `load` returns
    tensors: dict[str, Tensor]  # by the model's own names
    tokenizer: Any  # a `speechkit.text.Tokenizer`, or None


def target(name: Any) -> type:
    """The class that a ``_target_`` names; only those of `BUILDABLE` packages, so that no configuration runs code."""
    module, _, attribute = str(name).rpartition(".")
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
    """Builds what a configuration describes, inner ``_target_``s first; `given` are further arguments."""
    if isinstance(config, Mapping):
        arguments = {str(key): build(value) for key, value in config.items() if key not in DIRECTIONS}
        if "_target_" not in config:
            return arguments
        try:
            return target(config["_target_"])(**arguments, **given)
        except InputError:
            raise
        except (TypeError, ValueError, ArithmeticError, RuntimeError, MemoryError) as error:
            raise InputError(f"{config['_target_']} cannot be built from this configuration: {error}") from error
    if isinstance(config, (list, tuple)):
        return [build(value) for value in config]
    return config


def check_size(config: Any, source: str) -> None:
    """Refuses configurations that unfold to millions of values (YAML aliases can nest)."""
    stack, count = [config], 0
    while stack:
        value = stack.pop()
        count += 1
        if count > MAX_NODES:
            raise InputError(f"{source} unfolds to more than {MAX_NODES} values: not a model's configuration")
        if isinstance(value, Mapping):
            stack.extend(value.values())
        elif isinstance(value, (list, tuple)):
            stack.extend(value)


def shapes(config: Any) -> dict[str, torch.Size]:
    """Names and shapes of a model's tensors, without making them: an absurd size costs no memory."""
    with torch.device("meta"):
        model = build(config)
    if not isinstance(model, nn.Module):
        raise InputError(f"the configuration's model must be a network, got {type(model).__name__}")
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, torch.Size], source: str) -> None:
    """Refuses tensors that are not exactly a model's, naming what is missing, surplus or of another shape."""
    wrong = [
        f"{name} of shape {tuple(found[name].shape)}, not {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and found[name].shape != shape
    ]
    reports = {
        "lack": [name for name in expected if name not in found],
        "have unknown": [name for name in found if name not in expected],
        "have": wrong,
    }
    report = "; ".join(f"they {verb} {_list(names)}" for verb, names in reports.items() if names)
    if report:
        raise InputError(f"the weights of {source} are not of the model that its configuration describes: {report}")


def _list(names: list[str], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def build_model(release: Release) -> nn.Module:
    """The network of a release with its weights, in evaluation mode and single precision."""
    if not isinstance(release.config.get("model"), Mapping):
        raise InputError(f"the configuration of {release.source} has no section `model`")
    check_size(release.config, f"the configuration of {release.source}")
    check_tensors(release.tensors, shapes(release.config["model"]), release.source)
    odd = [name for name, value in release.tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if odd:
        raise InputError(f"the weights of {release.source} hold NaN or Inf: {_list(odd)}")
    model = build(release.config["model"])
    assert isinstance(model, nn.Module)
    model.load_state_dict(release.tensors)
    return model.eval()


def assemble(release: Release, device: str | torch.device = "cpu") -> Any:
    """What a user works with: the release's ``api`` class around its model and tokenizer."""
    api = release.config.get("api") or API
    parameters = inspect.signature(target(api)).parameters
    given = {"tokenizer": release.tokenizer} if "tokenizer" in parameters else {}
    if given and release.tokenizer is None and parameters["tokenizer"].default is inspect.Parameter.empty:
        raise InputError(f"{release.source} holds no tokenizer, without which its model gives no text")
    model = build_model(release)
    pieces = getattr(release.tokenizer, "vocab_size", None)
    if pieces is not None and getattr(model, "blank", pieces) != pieces:
        raise InputError(
            f"the tokenizer of {release.source} has {pieces} pieces, but its model gives {model.blank}: they do not "
            "belong together"
        )
    return build({"_target_": api}, model=model.to(device), **given)
