"""The structure: imports go down only and without cycles, and the server starts without torch."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "audiocraft_api"

# From the bottom up; a module may import modules of its own layer and of those listed before it.
LAYERS = [
    {"audiocraft_api", "core"},  # the package itself holds the version only
    {"config"},
    {"model"},
    {"engine"},
    {"net"},
    {"state"},
    {"access", "audio", "policy", "storage"},
    {"generation"},
    {"live"},
    {"tasks"},
    {"telemetry"},
    {"services"},
    {"web"},
    {"factory", "celery_app", "__main__"},
]
TORCH = {"torch", "torchaudio", "audiocraft", "transformers", "demucs"}


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {dotted(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def package_of(module: str) -> str:
    """Return the first name below `audiocraft_api`, or `audiocraft_api` itself."""
    return module.split(".")[1] if "." in module else module


def layer_of(module: str) -> int:
    return next(index for index, layer in enumerate(LAYERS) if package_of(module) in layer)


def names_imported_by(module: str) -> set[str]:
    """Return the absolute dotted names that a module imports, in `TYPE_CHECKING` blocks and functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports must be absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules_imported_by(module: str) -> set[str]:
    """Return the modules of this package that a module imports."""
    found: set[str] = set()
    for name in names_imported_by(module):
        if name.split(".")[0] == "audiocraft_api":
            while name not in MODULES:
                name = name.rpartition(".")[0]
            found.add(name)
    return found - {module}


def external_packages(module: str) -> set[str]:
    return {name.split(".")[0] for name in names_imported_by(module)} - {"audiocraft_api"}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module: str) -> None:
    above = {name for name in modules_imported_by(module) if layer_of(name) > layer_of(module)}
    assert not above


def test_modules_do_not_import_each_other_in_a_cycle() -> None:
    graphlib.TopologicalSorter({module: modules_imported_by(module) for module in MODULES}).prepare()


def test_packages_do_not_import_each_other_in_a_cycle() -> None:
    packages: dict[str, set[str]] = {}
    for module in MODULES:
        own = package_of(module)
        packages.setdefault(own, set()).update({package_of(name) for name in modules_imported_by(module)} - {own})
    graphlib.TopologicalSorter(packages).prepare()


@pytest.mark.parametrize("module", MODULES)
def test_each_library_stays_in_its_layer(module: str) -> None:
    libraries = external_packages(module)
    if layer_of(module) < layer_of("audiocraft_api.web"):
        assert not libraries & {"flask", "flask_cors", "flask_sock", "werkzeug", "gunicorn"}
    if layer_of(module) > layer_of("audiocraft_api.engine"):
        assert not libraries & TORCH
    if package_of(module) != "model":
        assert "audiocraft" not in libraries


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_docstring(module: str) -> None:
    assert ast.get_docstring(ast.parse(MODULES[module].read_text()))


def test_creating_the_app_imports_neither_torch_nor_boto3() -> None:
    program = (
        "import sys, app; app.create_app().test_client().get('/health'); "
        f"print(sorted(set(sys.modules) & {TORCH | {'boto3'}!r}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout.strip() == "[]"
