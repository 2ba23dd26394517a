"""What the clients know of the API cannot drift from the server: a change of one without the other fails here."""

from __future__ import annotations

import copy
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from audiocraft_api_client.errors import ERROR_CLASSES

from audiocraft_api.core.errors import AudioCraftError
from clients.generate import CLIENTS, Schema, generated_files, openapi_schemas
from support.documents import ROOT

CLIENT_CODES = {"connection_failed"}


@pytest.fixture(scope="module")
def schemas() -> dict[str, Schema]:
    return openapi_schemas()


def outdated(schemas: Mapping[str, Schema]) -> set[str]:
    """Return the names of the generated files that differ from what would be generated."""
    return {path.name for path, text in generated_files(schemas).items() if path.read_text() != text}


def server_codes() -> set[str]:
    """Return the code of every error of the server."""
    classes = [AudioCraftError]
    for found in classes:
        classes += found.__subclasses__()
    return {found.code for found in classes if found.__module__ == AudioCraftError.__module__}


def test_the_generated_files_are_current(schemas: dict[str, Schema]) -> None:
    assert outdated(schemas) == set(), "run: python -m clients.generate"


@pytest.mark.parametrize(
    "schema", ["GenerateRequest", "TaskRequest", "SegmentFields", "RecipeResponse", "TaskWorkingResponse"]
)
def test_a_new_field_of_the_server_changes_both_clients(schemas: dict[str, Schema], schema: str) -> None:
    changed = copy.deepcopy(schemas)
    changed[schema]["properties"]["new_field"] = {"type": "integer"}
    assert outdated(changed) == {"schema.d.ts", "models.py"}


def test_a_new_schema_of_the_server_changes_both_clients(schemas: dict[str, Schema]) -> None:
    new = {"NewResponse": {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}}
    assert outdated({**schemas, **new}) == {"schema.d.ts", "models.py"}


def test_the_python_client_has_a_class_for_every_error_code() -> None:
    assert set(ERROR_CLASSES) - CLIENT_CODES == server_codes()


def test_the_javascript_client_has_the_same_classes_for_the_codes() -> None:
    program = "import {ERROR_CLASSES as all} from './errors.js'; for (const c in all) console.log(c, all[c].name)"
    command = ["node", "--input-type=module", "--eval", program]
    shown = subprocess.run(command, cwd=CLIENTS / "javascript" / "src", capture_output=True, text=True, check=True)
    found = dict(line.split() for line in shown.stdout.splitlines())
    named = {code: found.__name__.replace("ConnectionFailed", "Connection") for code, found in ERROR_CLASSES.items()}
    assert found == named


def test_every_export_of_the_javascript_client_has_a_type() -> None:
    source = CLIENTS / "javascript" / "src"
    program = "import * as all from './index.js'; console.log(Object.keys(all).join(' '))"
    command = ["node", "--input-type=module", "--eval", program]
    shown = subprocess.run(command, cwd=source, capture_output=True, text=True, check=True)
    declared = re.findall(r"^export (?:class|function|const) (\w+)", (source / "index.d.ts").read_text(), re.MULTILINE)
    assert set(shown.stdout.split()) == set(declared)


@pytest.mark.parametrize("client", ["javascript", "python"])
def test_each_client_carries_the_license(client: str) -> None:
    assert (CLIENTS / client / "LICENSE").read_text() == (Path(ROOT) / "LICENSE").read_text()
