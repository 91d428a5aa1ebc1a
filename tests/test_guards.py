"""Rules that every file of the repository keeps."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.paths import ROOT

TEXT = {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".cfg", ".sh", ".html", ".js", ".json"}


def tracked() -> list[Path]:
    """The files of the repository that git knows or would add; without git, all but what builds and runs leave."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
        )
        if listed.returncode == 0:
            return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    left = {".venv", "build", "dist", "site", "runs", "outputs", "__pycache__"}
    return [p for p in ROOT.rglob("*") if p.is_file() and not left & set(p.relative_to(ROOT).parts)]


def texts() -> Iterator[tuple[Path, str]]:
    for path in tracked():
        if path.suffix in TEXT or path.name in {"Makefile", "run", ".gitignore"}:
            yield path.relative_to(ROOT), path.read_text(errors="replace")


def calls(*folders: str) -> Iterator[tuple[str, str, ast.Call]]:
    """(place, called name, call) for every call in the folders' Python files."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", ast.unparse(node.func), node


def test_codecs_is_no_package() -> None:
    """With an __init__.py, Python's own codecs module is shadowed wherever the checkout is on the path."""
    assert (ROOT / "codecs").is_dir()
    assert not (ROOT / "codecs" / "__init__.py").exists()


def test_python_starts_with_the_checkout_on_its_path() -> None:
    command = [sys.executable, "-X", "frozen_modules=off", "-c", "import codecs; print(codecs.__file__)"]
    started = subprocess.run(
        command, env={"PYTHONPATH": str(ROOT)}, cwd=ROOT.anchor, capture_output=True, text=True, check=False
    )
    assert started.returncode == 0, started.stderr
    assert not Path(started.stdout.strip()).is_relative_to(ROOT / "codecs")


@pytest.mark.parametrize("folder", ["recipes", "speechkit", "codecs", "streaming", "conf", "tests", "demo"])
def test_the_top_level_folders_are_there(folder: str) -> None:
    assert (ROOT / folder).is_dir()


def test_checkpoints_are_loaded_as_weights_only() -> None:
    loads = [(place, call) for place, name, call in calls("speechkit", "streaming", "codecs") if name == "torch.load"]
    unsafe = [
        place
        for place, call in loads
        if not any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in call.keywords)
    ]
    assert not unsafe


def test_nothing_runs_code_from_data() -> None:
    banned = re.compile(r"(^|\.)(extractall|eval|exec)$|^(c?[pP]ickle|dill|cloudpickle|joblib|marshal)\.loads?$")
    own = re.compile(r"^(self|\w*(model|module|net|encoder|task|recognizer))(\.\w+)*\.eval$")  # nn.Module.eval()
    found = [
        f"{place}: {name}(...)"
        for place, name, call in calls("speechkit", "streaming", "codecs")
        if banned.search(name) and not own.match(name) and not (name.endswith(".eval") and not call.args)
    ]
    assert not found


def test_yaml_is_loaded_safely() -> None:
    assert not [place for place, name, _ in calls("speechkit", "streaming", "codecs") if name == "yaml.load"]


def test_no_path_of_a_machine_is_in_the_repository() -> None:
    homes = "|".join(("/" + "work/", "/" + "root/", "/" + "home/[a-z]", "/" + "Users/[a-z]", "/" + "opt/"))
    found = [f"{path}: {m[0]}" for path, text in texts() for m in re.finditer(rf"(?<![\w.~-])({homes})", text)]
    assert not found


def test_no_package_index_is_in_the_repository() -> None:
    index = re.compile("--(extra-)?" + r"index-url|--find-" + r"links|https?://\S+\.(whl|tgz|deb)\b")
    assert not [f"{path}: {m[0]}" for path, text in texts() for m in index.finditer(text)]


def test_nothing_is_left_for_later() -> None:
    later = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b|raise NotImplemented" + "Error")
    assert not [
        f"{path}: {m[0]}"
        for path, text in texts()
        if path.suffix == ".py" and path.parts[0] != "tests"
        for m in later.finditer(text)
    ]


def test_constraints_hold_names_and_versions_only() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert lines
    assert not [line for line in lines if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*==[0-9][0-9a-z.]*", line)]
    assert lines == sorted(set(lines)), "constraints.txt must be sorted and name each package once"


def yaml_files() -> list[Path]:
    return sorted((ROOT / "conf").rglob("*.yaml"))


def test_every_config_is_a_yaml_mapping() -> None:
    files = yaml_files()
    wrong = [str(p.relative_to(ROOT)) for p in files if not isinstance(yaml.safe_load(p.read_text()) or {}, dict)]
    assert not wrong
    assert files, "conf/ has no YAML file"


def test_recipes_select_for_the_whole_config() -> None:
    """A recipe changes other groups, which Hydra allows only with its package directive."""
    recipes = sorted((ROOT / "conf" / "recipe").glob("*.yaml"))
    assert not [p.name for p in recipes if "# @package _global_" not in p.read_text().splitlines()[:3]]
