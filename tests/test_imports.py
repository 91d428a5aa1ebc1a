"""One process at a time imports what Numba compiles."""

import importlib
import os
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from speechkit.imports import librosa


def test_no_other_process_can_import_librosa_meanwhile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[str] = []

    def importing(name: str) -> object:
        seen.append(name)
        (lock,) = tmp_path.glob(f"*{os.getuid()}.lock")
        with pytest.raises(Timeout):
            FileLock(lock, timeout=0).acquire()
        return object()

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(importlib, "import_module", importing)
    librosa.cache_clear()
    first = librosa("filters")
    assert librosa("filters") is first  # the lock is needed once
    assert seen == ["librosa.filters"]
    librosa.cache_clear()
