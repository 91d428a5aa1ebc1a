"""Folders of exports: written beside their place and put there whole, and never in the place of anything else."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx

from speechkit import __version__
from speechkit.errors import InputError
from speechkit.files import beside, take_place
from speechkit.onnx import FORMAT, META, WEIGHTS
from speechkit.streaming.export import OPSET
from speechkit.tokenizers import TOKENIZER_FILES

AUTHOR = "speechkit"  # in the metadata of a graph without meta.json beside it
MARKED = ("encoder.onnx", "model.onnx")  # graphs that have such metadata
TOKENS = "tokens.txt"
PARTS = (META, WEIGHTS, *TOKENIZER_FILES, TOKENS)


@contextmanager
def fresh(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder` that takes its place, if nothing fails.

    Raises:
        InputError: the place cannot be written, or holds something that is no export.
    """
    folder = free(folder)
    with beside(folder) as place:
        try:
            yield place
            old = take_place(folder, place)
        except OSError as error:
            raise InputError(f"{folder} cannot be written: {error.strerror or error}") from error
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)


def free(folder: Path) -> Path:
    """The absolute path of a folder that an export may take the place of; errors as `fresh`."""
    folder = folder.expanduser().absolute()
    if folder.exists() and not (folder.is_dir() and _is_ours(sorted(folder.iterdir()))):
        raise InputError(f"{folder} holds something else: name a new folder, an empty one or that of an older export")
    return folder


def _is_ours(files: Sequence[Path]) -> bool:
    """Whether what is in a folder is an older export, or nothing."""
    if not all(path.is_file() and (path.suffix == ".onnx" or path.name in PARTS) for path in files):
        return False
    return not files or any(map(_says_so, files))


def _says_so(path: Path) -> bool:
    """Whether a file says that speechkit made it."""
    try:
        if path.name == META:
            meta = json.loads(path.read_text(encoding="utf-8"))
            return isinstance(meta, dict) and "speechkit" in meta
        if path.name in MARKED:
            return any(item.value == AUTHOR for item in onnx.load(path, load_external_data=False).metadata_props)
    except Exception:  # whatever it is, it is not ours
        return False
    return False


def described(kind: str) -> dict[str, Any]:
    """What every export's `meta.json` begins with, in single precision."""
    return {"format": FORMAT, "kind": kind, "speechkit": __version__, "opset": OPSET, "precision": "fp32"}


def write_meta(folder: Path, meta: Mapping[str, Any]) -> None:
    """Writes `meta.json`."""
    (folder / META).write_text(json.dumps(meta, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
