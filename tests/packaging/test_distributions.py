"""What leaves the checkout: a source distribution, and from it a wheel that works in an empty environment."""

import importlib.util
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.paths import ROOT

PACKAGES = {"speechkit": "speechkit", "codecs": "speechkit/codecs", "streaming": "speechkit/streaming"}
PACKAGES |= {"conf": "speechkit/conf"}
TOOLS = ("build", "hatchling", "pip")
MISSING = [name for name in TOOLS if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"building needs {', '.join(MISSING)} (extra `dev`)"),
]


def run(command: Sequence[str | Path], cwd: Path) -> str:
    """The command's output; it runs in `cwd`, without this process's Python settings."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution, and the wheel that was built from it."""
    out = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT], cwd=out)
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def python(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with the wheel; dependencies are read from this test's environment."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False, symlinks=True)
    interpreter = home / "bin" / "python"
    install = ("install", "--quiet", "--no-deps", "--no-index")
    run([sys.executable, "-m", "pip", "--python", interpreter, *install, built[1]], cwd=home)
    site = Path(run([interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], home).strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return interpreter


def sources() -> dict[str, str]:
    """Path in the checkout -> path in the wheel, of all that must be in it."""
    found = {}
    for folder, target in PACKAGES.items():
        for path in (ROOT / folder).rglob("*"):
            inner = path.relative_to(ROOT / folder)
            link = folder == "speechkit" and inner.parts[0] in PACKAGES
            if (
                path.suffix in {".py", ".yaml", ".safetensors", ".model", ".md", ".html", ".js", ".css", ".svg"}
                and "__pycache__" not in inner.parts
                and not link
            ):
                found[f"{folder}/{inner}"] = f"{target}/{inner}"
    return found


def test_the_wheel_holds_every_module_and_config_once(built: tuple[Path, Path]) -> None:
    names = zipfile.ZipFile(built[1]).namelist()
    assert len(names) == len(set(names))
    assert not set(sources().values()) - set(names)


def test_the_wheel_holds_nothing_else(built: tuple[Path, Path]) -> None:
    names = zipfile.ZipFile(built[1]).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"speechkit"}
    assert not [name for name in names if "__pycache__" in name or name.startswith("speechkit/tests")]
    assert "speechkit/codecs/__init__.py" not in names


def test_the_source_distribution_can_be_built_and_tested(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    wanted = {"Makefile", "LICENSE", "README.md", "constraints.txt", "pyproject.toml", "tests/conftest.py"}
    assert not (wanted | set(sources())) - names
    assert not [name for name in names if "__pycache__" in name]


def test_importing_the_installed_package_is_light(python: Path, tmp_path: Path) -> None:
    code = "import sys, speechkit; print(speechkit.__version__, 'torch' in sys.modules, speechkit.__file__)"
    version, heavy, file = run([python, "-c", code], cwd=tmp_path).split()
    assert version
    assert heavy == "False"
    assert Path(file).is_relative_to(python.parent.parent)


def test_the_installed_package_has_its_parts(python: Path, tmp_path: Path) -> None:
    code = """
import speechkit.codecs, speechkit.conf, speechkit.streaming.state as state
print(speechkit.streaming.__file__, speechkit.codecs.__path__[0], hasattr(state, "Chunk"))
"""
    streaming, codecs, contract = run([python, "-c", code], cwd=tmp_path).split()
    assert Path(streaming).is_relative_to(python.parent.parent)
    assert Path(codecs).is_relative_to(python.parent.parent)
    assert contract == "True"


def test_the_installed_package_composes_its_recipe(python: Path, tmp_path: Path) -> None:
    code = """
from hydra import compose, initialize_config_module
with initialize_config_module("speechkit.conf", version_base="1.3"):
    print("\\n".join(compose("train", overrides=["recipe=librispeech_conformer"]).keys()))
"""
    keys = run([python, "-c", code], cwd=tmp_path).split()
    assert {"model", "data", "trainer"} <= set(keys)


def test_the_installed_package_transcribes(python: Path, tmp_path: Path) -> None:
    code = """
import numpy as np, speechkit
from speechkit import audio
audio.write("quiet.wav", np.zeros(16000))
print(speechkit.load().model.contexts)
"""
    assert "(70, 13)" in run([python, "-c", code], cwd=tmp_path)
    assert run([python.parent / "speechkit", "transcribe", "quiet.wav"], cwd=tmp_path) == "\n"


def test_the_command_is_installed(python: Path, tmp_path: Path) -> None:
    text = run([python.parent / "speechkit", "--help"], cwd=tmp_path)
    assert "transcribe" in text
