"""Files that appear whole or not at all."""

import contextlib
import os
import threading
from pathlib import Path

from speechkit.errors import InputError


def replace(path: Path, data: bytes, parents: bool = False) -> None:
    """Write bytes so that the file appears whole or not at all; with `parents` its folder is made where it is missing.

    Raises:
        InputError: the folder cannot be written or the disk is full; the former file survives.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise InputError(f"Cannot write {path}: {error.strerror or error}.") from error
