"""docs/structure.md names what exists: packages, modules, and the functions and methods on the path of a request."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from support.documents import ROOT, page, section

PACKAGE = ROOT / "audiocraft_api"
TEXT = page("docs/structure.md")
MAX_LINES_OF_A_PATH = 25


def names_in(module: Path) -> set[str]:
    """Return the functions, classes and methods of a module, methods as `Class.method`."""
    names: set[str] = set()
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
    return names


def test_every_name_on_a_path_exists() -> None:
    named = re.findall(r"\b([\w/]+\.py):([\w.]+)", TEXT)
    assert len(named) > 30
    assert [f"{module}:{name}" for module, name in named if name not in names_in(PACKAGE / module)] == []


def test_every_module_exists() -> None:
    modules = {name for name in re.findall(r"\b[\w/]+/\w+\.py\b", TEXT) if not name.startswith("tests/")}
    assert len(modules) > 20
    assert [name for name in modules if not (PACKAGE / name.removeprefix("audiocraft_api/")).exists()] == []


def test_every_package_has_a_sentence() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", section("docs/structure.md", "The packages"), re.MULTILINE)
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert set(listed) == packages | {"services"}


def test_each_path_fits_on_a_screen() -> None:
    for route in ("POST /generate", "POST /generate-async", "POST /generate-stream"):
        (path, *_) = re.findall(r"```\n(.*?)```", section("docs/structure.md", f"The path of `{route}`"), re.DOTALL)
        assert len(path.splitlines()) <= MAX_LINES_OF_A_PATH
