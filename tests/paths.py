"""Where the tests find real recordings and what reference implementations computed."""

import os
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _folder(variable: str, default: Path) -> Path:
    """The folder that an environment variable names, else the default beside the checkout."""
    return Path(os.environ.get(variable) or default).expanduser().resolve()


DATA = _folder("SPEECHKIT_DATA", ROOT.parent / "shared" / "data")
GOLDENS = _folder("SPEECHKIT_GOLDENS", ROOT.parent / "shared" / "goldens")

needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"no recordings in {DATA}: name their folder with SPEECHKIT_DATA"
)
needs_goldens = pytest.mark.skipif(
    not GOLDENS.is_dir(), reason=f"no reference outputs in {GOLDENS}: name their folder with SPEECHKIT_GOLDENS"
)


def hear_ctrl_c() -> None:
    """For `preexec_fn`: a child of a job in the background would ignore Ctrl-C, as such jobs do."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
