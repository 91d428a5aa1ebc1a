"""The layers of the architecture: imports only go down."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from tests.paths import ROOT

COMMANDS = ("train", "eval", "evaluation", "export", "serve", "cluster", "cli", "__main__", "commands")
ENTRY_POINTS = (*COMMANDS, "configuration", "construction")
MODELS = ("asr", "tts", "waveform", "separation", "codecs")
FOUNDATION = (
    "nn",
    "features",
    "text",
    "audio",
    "fbank",
    "low_frame_rate",
    "token_list",
    "tokenizers",
    "files",
    "imports",
    "reader",
    "wav",
    "ogg",
    "schedule",
    "metrics",
)
TRAINING = ("checkpoints", "callbacks")  # what train.py gives to Lightning's trainer
STREAM_CORE = ("state", "chain", "stream", "chunker")  # the rest of streaming is the run time above the models

ENTRY, TASK, MODEL, UNIT, STATE, ERROR = 5, 4, 3, 2, 1, 0


def sources() -> dict[str, Path]:
    """Module name -> file, for all that a wheel holds."""
    found = {}
    for top in ("speechkit", "codecs", "streaming", "conf"):
        prefix = [] if top == "speechkit" else ["speechkit"]
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[:1] == ("speechkit",) and parts[1] in ("codecs", "streaming", "conf"):
                continue  # a link of `make links`
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join([*prefix, *parts])] = path
    return found


SOURCES = sources()


def layer(module: str) -> int:
    """The height of a first-party module; higher ones may import lower ones and their equals."""
    parts = module.split(".")[1:]
    if not parts or parts[0] == "conf" or parts[0] == "errors":
        return ERROR
    if parts[0] in ENTRY_POINTS:
        return ENTRY
    if parts[0] == "streaming":
        return STATE if parts[1:] == [] or parts[1] in STREAM_CORE else TASK
    if parts[-1].rpartition("_")[2] in ("task", "job") or parts[0] in ("data", "hub", "importers"):
        return TASK
    if parts[0] in MODELS:
        return MODEL
    if parts[0] in FOUNDATION:
        return UNIT
    return TASK


def for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes, those inside functions included, but not what only type checkers read."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not for_type_checkers(child):
            yield from walk(child)


def imports(module: str, path: Path) -> set[str]:
    """The modules that a file imports, wherever in the file; `from package import module` counts as package.module."""
    names: set[str] = set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                stem = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*stem, base] if base else stem)
            inside = {f"{base}.{alias.name}" for alias in node.names} & SOURCES.keys()
            names.update(inside or {base})
    return names


IMPORTS = {module: imports(module, path) for module, path in SOURCES.items()}


def outside(module: str, *packages: str) -> set[str]:
    return {name for name in IMPORTS[module] if name.split(".")[0] in packages}


# Without the package itself: it opens hub.load when that is first asked for.
@pytest.mark.parametrize("module", [module for module in SOURCES if module != "speechkit"])
def test_imports_only_go_down(module: str) -> None:
    own = {name for name in IMPORTS[module] if name.split(".")[0] == "speechkit"}
    up = {name for name in own if layer(name) > layer(module)}
    assert not up, f"{module} (layer {layer(module)}) imports {sorted(up)} from above it"


def test_only_tasks_data_and_entry_points_import_lightning() -> None:
    guilty = {
        module
        for module in SOURCES
        if outside(module, "lightning", "pytorch_lightning")
        and not (layer(module) == ENTRY or module.endswith(".task") or module.split(".")[1] in ("data", *TRAINING))
    }
    assert not guilty


def test_only_entry_points_import_hydra() -> None:
    assert not {m for m in SOURCES if outside(m, "hydra") and layer(m) != ENTRY}


def test_only_the_exporter_imports_onnxruntime() -> None:
    allowed = {"speechkit.streaming.onnx", "speechkit.streaming.quantize"}
    assert not {m for m in SOURCES if outside(m, "onnxruntime")} - allowed


def test_only_demos_import_gradio() -> None:
    assert not {m for m in SOURCES if outside(m, "gradio")}


def test_only_the_hub_imports_importers() -> None:
    importing = {m for m in SOURCES if any(name.startswith("speechkit.importers") for name in IMPORTS[m])}
    assert not {m for m in importing if m != "speechkit.hub" and not m.startswith("speechkit.importers")}


def test_nothing_in_the_wheel_imports_what_is_not_in_it() -> None:
    assert not {m for m in SOURCES if outside(m, "tests", "recipes", "demo", "benchmarks", "codecs", "streaming")}


def test_every_imported_package_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {canonical(re.split(r"[\s\[<>=!~;]", line)[0]) for group in groups for line in group}
    owners = metadata.packages_distributions()  # only of what is installed: extras may be missing
    undeclared = {
        f"{module}: {package}"
        for module in SOURCES
        for package in {name.split(".")[0] for name in IMPORTS[module]} - {"speechkit", *sys.stdlib_module_names}
        if package in owners and not {canonical(owner) for owner in owners[package]} & declared
    }
    assert not undeclared


def canonical(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
