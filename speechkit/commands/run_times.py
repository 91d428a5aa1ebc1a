"""One recogniser in several run times, side by side."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from speechkit.asr.acoustic import Context
from speechkit.asr.transcriber import Transcriber
from speechkit.errors import InputError
from speechkit.onnx.kind import kind_of, named
from speechkit.onnx.publish import publish
from speechkit.onnx.read import read

PRECISIONS = {"torch": None, "onnx": "fp32", "int8": "int8"}  # of the graphs; PyTorch needs none


def _quiet(_line: str) -> None:
    """Says nothing."""


@contextmanager
def run_times(
    transcriber: Transcriber, names: Sequence[str], contexts: Sequence[Context]
) -> Iterator[dict[str, Transcriber]]:
    """The model as it is for ``torch``; for ``onnx`` and ``int8`` exported for the while, from features to steps.

    Raises:
        InputError: there is no such run time.
    """
    unknown = [name for name in names if name not in PRECISIONS]
    if unknown or not names:
        raise InputError(f"run times are {', '.join(PRECISIONS)}, got {', '.join(unknown) or 'none'}")
    wanted = [precision for name in names if (precision := PRECISIONS[name]) is not None]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "export"
        places: dict[str, Path] = {}
        if wanted:
            export = named(kind_of(transcriber).export)(transcriber, (), contexts, front=False)
            places = publish(export, target, wanted, _quiet)
        found = {}
        for name in names:
            precision = PRECISIONS[name]
            found[name] = transcriber if precision is None else read(places[precision], torch.get_num_threads())
        yield found
