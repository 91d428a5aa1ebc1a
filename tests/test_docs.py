"""The pages name things that exist."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from tests.paths import ROOT

TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "speechkit/models/asr/README.md")
PAGES = [ROOT / name for name in TOP] + sorted(p for f in ("docs", "recipes") for p in (ROOT / f).rglob("*.md"))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    inside = [target for target in targets if not re.match(r"[a-z]+:", target)]
    assert not [target for target in inside if not (page.parent / target).exists()]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_nothing_is_left_to_be_filled_in(page: Path) -> None:
    assert not re.findall(r"^(?:[A-Z]{4,}|TODO.*)$|\b(?:TBD|XXX)\b", page.read_text(), re.M)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_examples_are_python(page: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        assert ast.parse(block).body


def test_api_pages_name_modules_that_exist() -> None:
    modules = [m for p in (ROOT / "docs" / "api").glob("*.md") for m in re.findall(r"^::: (\S+)$", p.read_text(), re.M)]
    assert modules
    for module in modules:
        parts = module.split(".")[1:]
        folder = ROOT if parts[0] in ("streaming", "codecs") else ROOT / "speechkit"
        path = folder.joinpath(*parts)
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), module


def test_every_page_is_in_the_navigation() -> None:
    text = re.sub(r"!!python/name:\S+", "", (ROOT / "mkdocs.yml").read_text())
    listed = set(re.findall(r"[\w/-]+\.md", str(yaml.safe_load(text)["nav"])))
    assert listed == {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
