"""Export folders read again: `meta.json`, its graphs and the tokenizer."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speechkit.asr.transcriber import Transcriber
from speechkit.errors import InputError
from speechkit.onnx import FORMAT, META
from speechkit.onnx.recognizer import OnnxRecognizer
from speechkit.text import load_tokenizer


def read(folder: Path, threads: int = 1, providers: Sequence[str] = ()) -> Transcriber:
    """The recogniser of an export folder.

    Raises:
        InputError: the folder is not whole, or of another version.
    """
    meta = read_meta(folder)
    try:
        model = OnnxRecognizer(meta, folder, threads, providers)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder / META} describes no recogniser: {error!r:.200}") from error
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab_size != model.blank:
        raise InputError(
            f"the tokenizer of {folder} has {tokenizer.vocab_size} pieces, but its model gives {model.blank}"
        )
    return Transcriber(model, tokenizer)


def read_meta(folder: Path) -> dict[str, Any]:
    """What `meta.json` says; errors as `read`."""
    path = folder / META
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path} is no JSON: {error}") from error
    version = meta.get("format") if isinstance(meta, dict) else None
    if version != FORMAT:
        raise InputError(f"{path} has format {version!r:.50}, this version of speechkit reads {FORMAT}")
    return dict(meta)
