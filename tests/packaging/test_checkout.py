"""A clone that was only checked out: its imports and its make targets."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    command = ["make", "-C", str(ROOT), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_a_bare_checkout_finds_its_folders() -> None:
    code = """
import sys, speechkit
assert "torch" not in sys.modules
import speechkit.codecs, speechkit.conf
print(speechkit.conf.__file__, next(iter(speechkit.codecs.__path__)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    conf, codecs = done.stdout.split()
    assert Path(conf).resolve() == ROOT / "conf" / "__init__.py"
    assert Path(codecs).resolve() == ROOT / "codecs"


@needs_make
def test_quickstart_sets_up_and_runs_the_main_job(tmp_path: Path) -> None:
    plan = make("-n", "quickstart", f"VENV={tmp_path}", f"PYTHON={sys.executable}").stdout
    assert plan.index("-m venv") < plan.index("pip install") < plan.index("-m speechkit.train")
    assert "--constraint constraints.txt --editable '.[all,dev,peers]'" in plan
    assert f"{tmp_path}/bin/python -m speechkit.train recipe=librispeech_conformer" in plan


@needs_make
def test_a_finished_setup_is_not_repeated(tmp_path: Path) -> None:
    (tmp_path / ".installed").touch()
    plan = make("-n", "test", f"VENV={tmp_path}").stdout
    assert "pip install" not in plan
    assert f"{tmp_path}/bin/python -m pytest" in plan


@needs_make
def test_a_python_that_is_too_old_is_refused_in_a_sentence(tmp_path: Path) -> None:
    old = tmp_path / "python"
    old.write_text('#!/bin/sh\ntest "$1" = -V && echo Python 3.9.18 && exit\nexit 1\n')
    old.chmod(0o755)
    done = make("install", f"VENV={tmp_path}/environment", f"PYTHON={old}")
    assert done.returncode != 0
    assert f"speechkit needs Python 3.11 or newer, but {old} is Python 3.9.18" in done.stdout + done.stderr
    assert not (tmp_path / "environment").exists()
