"""Models become export folders, of whatever kind: all precisions come into place, or nothing does."""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from speechkit.errors import InputError
from speechkit.onnx import WEIGHTS
from speechkit.onnx.folder import free, fresh, write_meta
from speechkit.onnx.read import read, read_meta
from speechkit.streaming.export import share_weights
from speechkit.streaming.quantize import reduce

Say = Callable[[str], None]
Recordings = Sequence[tuple[str, Sequence[Tensor], Sequence[str]]]  # splits: name, waves (samples,), texts


class Export(ABC):
    """One model that is to be exported, with all that was asked for.

    A subclass writes a folder of its kind and compares it with the model; the rest is the same for all of them.
    """

    precisions: ClassVar[Sequence[str]] = ("fp32", "int8")  # that models of the kind can be had in
    keep: ClassVar[Sequence[str]] = ()  # endings of the names of weights that stay as they are in eight bits
    use: ClassVar[str]  # what to do with the folder, {} in its place

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Writes graphs in single precision and `meta.json` to a folder that is there."""

    @abstractmethod
    def reduced(self, meta: Mapping[str, Any]) -> Sequence[str]:
        """The graphs that another precision changes, of a folder that `write` described so."""

    @abstractmethod
    def check(self, exported: Any, precision: str, say: Say) -> None:
        """Compares a folder, read again, with the model, first in single precision, and says what is found.

        Raises:
            InputError: it is too far off.
        """


def publish(export: Export, folder: Path, precisions: Sequence[str], say: Say = print) -> dict[str, Path]:
    """Exports a model, checks the graphs against it, and puts them into place.

    Args:
        export: the model.
        folder: for one precision the export itself, for several the folder of their folders.
        precisions: of ``fp32``, ``int8`` and what else the kind has.
        say: what takes the report, line by line.

    Returns:
        The folder of each precision.

    Raises:
        InputError: the model cannot be exported, the folder cannot be written, or a check failed.
    """
    check_precisions(precisions, export.precisions)
    places = {name: free(folder / name if len(precisions) > 1 else folder) for name in precisions}
    with ExitStack() as stack:  # all of them come into place, or none does
        inner = {name: stack.enter_context(fresh(place)) for name, place in places.items()}
        whole = inner[precisions[0]]
        export.write(whole)
        export.check(read(whole), "fp32", say)
        for name in sorted(precisions, key=lambda name: inner[name] == whole):  # the copies before the original
            if inner[name] != whole:
                shutil.copytree(whole, inner[name], dirs_exist_ok=True)
            if name != "fp32":
                _reduce(export, inner[name], name)
                _check(export, inner[name], name, precisions, say)
    for name, place in places.items():
        size = sum(file.stat().st_size for file in place.iterdir())
        say(f"{name}: {size / 1e6:.1f} MB in {place}")
    return places


def _check(export: Export, folder: Path, precision: str, precisions: Sequence[str], say: Say) -> None:
    """As `Export.check`; where others were asked for, its error says that they are not written either."""
    try:
        export.check(read(folder), precision, say)
    except InputError as error:
        others = [name for name in precisions if name != precision]
        if not others:
            raise
        raise InputError(
            f"{error}; all precisions are written or none: leave out {precision} to have {' and '.join(others)}"
        ) from error


def check_precisions(names: Sequence[str], there: Sequence[str]) -> None:
    """Raises InputError where a precision is none of those that are there, or none is named."""
    unknown = [name for name in names if name not in there]
    if unknown or not names:
        raise InputError(f"precisions are of {', '.join(there)}, got {', '.join(unknown) or 'none'}")


def _reduce(export: Export, folder: Path, precision: str) -> None:
    """Turns an export into another precision, in place."""
    meta = read_meta(folder)
    for name in export.reduced(meta):
        reduce(folder / name, precision, export.keep)
    share_weights(sorted(folder.glob("*.onnx")), WEIGHTS)
    write_meta(folder, meta | {"precision": precision})
