"""librosa, which one process of a machine imports at a time."""

import importlib
import os
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType

from filelock import FileLock


@cache
def librosa(module: str) -> ModuleType:
    """`librosa.{module}`, as "core.pitch".

    Numba compiles librosa's loops when they are first imported on a machine. Where two processes do so at once, their
    caches mix, and whoever calls such a loop later ends with a segmentation fault (numba issue 10128).
    """
    user = getattr(os, "getuid", int)()  # whose cache it is; where there are no numbers the folder is the user's own
    with FileLock(Path(tempfile.gettempdir()) / f"speechkit-librosa-{user}.lock"):
        return importlib.import_module(f"librosa.{module}")
