"""The structure holds: imports go down only, files stay small, torch waits for the first model."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "audiocraft_api"
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 300

# From the bottom up; a module may import its own layer and those before it.
LAYERS = [
    {"", "core"},
    {"config"},
    {"model"},
    {"engine"},
    {"net"},
    {"state"},
    {"audio", "policy", "storage", "access"},
    {"generation"},
    {"tasks"},
    {"telemetry"},
    {"services"},
    {"web"},
    {"factory", "celery_app", "__main__"},
]
TORCH = {"torch", "torchaudio", "audiocraft", "transformers", "demucs"}


def layer_of(module: str) -> int:
    """Return the layer of a dotted name below the package."""
    parts = module.split(".")
    names = {"", ".".join(parts[:1]), ".".join(parts[:2])} - ({""} if module else set())
    return next(index for index, layer in enumerate(LAYERS) if names & layer)


def imports_of(path: Path, *, at_import_only: bool = False) -> set[str]:
    """Return the absolute dotted names that a module imports, by `import a.b` and `from a.b import c` as a.b.c."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    nodes = list(ast.walk(tree))
    if at_import_only:
        functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        inner = {id(child) for function in functions for child in ast.walk(function)}
        nodes = [node for node in nodes if id(node) not in inner]
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def identifier(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=identifier)
def test_imports_go_down_only(path: Path) -> None:
    own = layer_of(dotted(path))
    for name in imports_of(path):
        if name.split(".")[0] == "audiocraft_api":
            inner = name.removeprefix("audiocraft_api").lstrip(".")
            inner = "" if inner.startswith("__version__") else inner
            assert layer_of(inner) <= own, f"{identifier(path)} imports {name} from above"


@pytest.mark.parametrize("path", MODULES, ids=identifier)
def test_only_the_model_layer_imports_audiocraft(path: Path) -> None:
    if layer_of(dotted(path)) != layer_of("model"):
        assert not [name for name in imports_of(path) if name.split(".")[0] == "audiocraft"]


@pytest.mark.parametrize("path", MODULES, ids=identifier)
def test_flask_stays_in_the_http_layer_and_torch_below_it(path: Path) -> None:
    packages = {name.split(".")[0] for name in imports_of(path)}
    if layer_of(dotted(path)) < layer_of("web"):
        assert not packages & {"flask", "flask_cors", "werkzeug", "gunicorn"}
    if layer_of(dotted(path)) > layer_of("engine"):
        assert not packages & TORCH


@pytest.mark.parametrize("path", MODULES, ids=identifier)
def test_no_file_is_over_300_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", MODULES, ids=identifier)
def test_every_module_says_what_it_owns(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_importing_and_creating_the_app_needs_neither_torch_nor_boto3() -> None:
    heavy = TORCH | {"boto3"}
    program = (
        f"import sys, app; app.create_app().test_client().get('/health'); print(sorted(set(sys.modules) & {heavy!r}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout.strip() == "[]"
