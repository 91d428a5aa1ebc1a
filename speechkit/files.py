"""Files that appear whole or not at all."""

import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from speechkit.errors import InputError


def replace(path: Path, data: bytes, parents: bool = False) -> None:
    """Write bytes so that the file appears whole or not at all; with `parents` its folder is made where it is missing.

    Raises:
        InputError: the folder cannot be written or the disk is full; the former file survives.
    """
    with appearing(path, parents) as file:
        file.write(data)


@contextlib.contextmanager
def appearing(path: Path, parents: bool = False) -> Iterator[BinaryIO]:
    """A file to be written piece by piece, in its place once it is whole; with `parents` its folder is made.

    Raises:
        InputError: the folder cannot be written or the disk is full; the former file survives this and all else that
            ends the writing.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if not isinstance(error, OSError):
            raise
        raise InputError(f"Cannot write {path}: {error.strerror or error}.") from error


@contextlib.contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """An empty folder beside an absolute path, to be filled and put into its place by `take_place`; else it vanishes.

    Raises:
        InputError: it cannot be made.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror or error}") from error
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def take_place(folder: Path, fresh: Path) -> Path | None:
    """Puts `fresh` in the place of `folder`, which comes back if that fails; where the former one then is, if any."""
    fresh.chmod(0o755)
    if not folder.exists():
        fresh.rename(folder)
        return None
    old = fresh.with_name(fresh.name + ".old")
    folder.rename(old)
    try:
        fresh.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    return old
