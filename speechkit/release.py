"""A model as configuration, tensors and tokenizer: what release folders hold and importers translate to."""

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from speechkit.builder import build, build_network, check_values, shapes, target
from speechkit.errors import InputError

API = "speechkit.asr.transcriber.Transcriber"


class Release(NamedTuple):
    """A model that is not built yet."""

    source: str  # where it comes from, for messages
    config: dict[str, Any]  # ``model`` and ``tokenizer`` with ``_target_``s, ``api``: the class that `load` returns
    tensors: dict[str, Tensor]  # by the model's own names
    tokenizer: Any  # a `speechkit.text.Tokenizer`, or None
    training: Mapping[str, Sequence[Tensor]] = MappingProxyType({})  # of parts that only training has, in their order


@contextlib.contextmanager
def described(source: str) -> Iterator[None]:
    """Names the file whose configuration turns out to describe nothing that can be built."""
    try:
        yield
    except InputError as error:
        raise InputError(f"the configuration of {source} cannot be used: {error}") from error


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


def check_plain(tensors: Mapping[Any, object], source: str) -> None:
    """Refuses what is no tensor with all its numbers in memory, naming it."""
    odd = [str(name) for name, value in tensors.items() if not _is_plain(value)]
    if odd:
        raise InputError(f"{source} must hold plain tensors (not sparse, quantized or without data): {_list(odd)}")


def _is_plain(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_meta or value.is_quantized or value.is_nested or value.is_complex())
        and value.nbytes <= value.untyped_storage().nbytes()  # one number can be expanded to any size
    )


def build_model(release: Release) -> nn.Module:
    """The network of a release with its weights, in evaluation mode and single precision."""
    config = release.config.get("model")
    if not isinstance(config, Mapping):
        raise InputError(f"the configuration of {release.source} has no section `model`")
    check_values(release.config, f"the configuration of {release.source}")
    with described(release.source):
        expected = shapes(config)
    check_tensors(release.tensors, expected, release.source)
    odd = [name for name, value in release.tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if odd:
        raise InputError(f"the weights of {release.source} hold NaN or Inf: {_list(odd)}")
    with described(release.source):
        model = build_network(config)
    own = model.state_dict()
    whole = [
        name for name, value in release.tensors.items() if value.is_floating_point() != own[name].is_floating_point()
    ]
    if whole:
        raise InputError(f"the weights of {release.source} hold numbers of another kind than the model: {_list(whole)}")
    model.load_state_dict(release.tensors)
    return model.eval()


def assemble(release: Release, device: str | torch.device = "cpu") -> Any:
    """What a user works with: the release's ``api`` class around its model and tokenizer."""
    api = release.config.get("api") or API
    with described(release.source):
        parameters = inspect.signature(target(api)).parameters
    given = {"tokenizer": release.tokenizer} if "tokenizer" in parameters else {}
    if given and release.tokenizer is None and parameters["tokenizer"].default is inspect.Parameter.empty:
        raise InputError(f"{release.source} holds no tokenizer, without which its model gives no text")
    model = build_model(release)
    pieces = getattr(release.tokenizer, "vocab_size", None)
    if pieces is not None and getattr(model, "vocab_size", pieces) != pieces:
        raise InputError(
            f"the tokenizer of {release.source} has {pieces} pieces, but its model gives {model.vocab_size}: they do "
            "not belong together"
        )
    with described(release.source):
        return build({"_target_": api}, model=model.to(device), **given)
