"""The adapters stay thin: they translate, and leave everything else to the packages below."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from support.documents import ROOT

MODULES = sorted((ROOT / "audiocraft_api" / "web" / "compat").glob("*.py"))
FORBIDDEN = ("torch", "numpy", "audiocraft", "audiocraft_api.engine", "audiocraft_api.generation.service")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_an_adapter_is_short_and_generates_nothing(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 200
    imported = {node.module or "" for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}
    imported |= {
        alias.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import) for alias in node.names
    }
    assert [name for name in imported for bad in FORBIDDEN if name == bad or name.startswith(f"{bad}.")] == []
