"""The kinds of models that become export folders: who writes each of them, and who reads it again."""

import pkgutil
from typing import Any, NamedTuple

from speechkit.errors import InputError


class Kind(NamedTuple):
    """A kind, whose code is named and not imported: who needs one kind does not wait for the others."""

    noun: str  # in messages
    api: str  # the class of what `speechkit.load` gives
    reader: str  # (meta, folder, threads, providers) -> the same of a folder
    export: str  # the `speechkit.onnx.publish.Export` that writes one and checks it
    network: str = ""  # the class of its model, where several kinds have one api


KINDS = {  # by their names in meta.json
    "recognizer": Kind(
        "recogniser", "speechkit.asr.transcriber:Transcriber", "speechkit.onnx.recognizer:read",
        "speechkit.onnx.release:RecognizerExport",
    ),
    "paraformer": Kind(
        "recogniser", "speechkit.asr.transcriber:Transcriber", "speechkit.onnx.paraformer:read",
        "speechkit.onnx.paraformer_export:ParaformerExport", "speechkit.asr.paraformer:Paraformer",
    ),
    "codec": Kind(
        "codec", "speechkit.codecs.codec:Codec", "speechkit.onnx.codec:read", "speechkit.onnx.codec_export:CodecExport"
    ),
    "s3": Kind(
        "speech tokenizer", "speechkit.codecs.s3:SpeechTokenizer", "speechkit.onnx.s3:read",
        "speechkit.onnx.s3_export:TokenizerExport",
    ),
}  # fmt: skip
FORMER = "recognizer"  # what folders hold that do not say


def kind_of(model: Any) -> Kind:
    """The kind of what `speechkit.load` gave.

    Raises:
        InputError: it is none of them.
    """
    names, networks = _names(model), _names(getattr(model, "model", None))
    for kind in sorted(KINDS.values(), key=lambda kind: not kind.network):  # what is of one network only, first
        if kind.api in names and (not kind.network or kind.network in networks):
            return kind
    nouns = ", ".join(dict.fromkeys(f"{kind.noun}s" for kind in KINDS.values()))
    raise InputError(f"what can be exported are {nouns}, not a {type(model).__name__}")


def _names(item: Any) -> set[str]:
    """Of an object's class and of those that it is one of."""
    return {f"{one.__module__}:{one.__qualname__}" for one in type(item).__mro__}


def named(code: str) -> Any:
    """The object of a name as in `Kind`, imported now."""
    return pkgutil.resolve_name(code)
