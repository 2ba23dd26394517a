"""The pages agree with the code: links resolve, examples validate, tables list every field, setting and file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from audiocraft_api import __version__
from audiocraft_api.audio.convert import FORMATS
from audiocraft_api.config import all_settings, load_config, variable_name
from audiocraft_api.model.catalog import Catalog
from audiocraft_api.web.schemas.forms import MelodyRequest
from audiocraft_api.web.schemas.generation import GenerateRequest
from audiocraft_api.web.schemas.responses import GenerateUrlResponse, HealthResponse
from audiocraft_api.web.schemas.tasks import TaskRequest
from support.documents import PAGES, ROOT, anchors, code_blocks, page, section

page_by_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())


def first_cells(text: str) -> dict[str, str]:
    """Return the second cells of a table's rows by the name in the first cell."""
    return dict(re.findall(r"^\| `(\w+)` \| ([^|]*?) \|", text, re.MULTILINE))


@page_by_page
def test_every_link_leads_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


@page_by_page
def test_lines_of_prose_have_at_most_120_characters(path: Path) -> None:
    prose = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    assert [line for line in prose.splitlines() if len(line) > 120 and not line.startswith("|")] == []


def test_the_index_links_to_every_page() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page("docs/index.md"))
    linked = {(ROOT / "docs" / link).resolve() for link in links}
    assert set(PAGES) - {ROOT / "docs" / "index.md"} <= linked


@page_by_page
def test_every_setting_on_a_page_exists(path: Path) -> None:
    settings = {variable_name(name) for name in all_settings()}
    named = set(re.findall(r"AUDIOCRAFT_API_[A-Z0-9_]*[A-Z0-9]", path.read_text()))
    # `AUDIOCRAFT_API_JWT_*` stands for all settings that begin like this.
    assert {
        name for name in named if not any(setting == name or setting.startswith(f"{name}_") for setting in settings)
    } == set()


@page_by_page
def test_every_test_file_on_a_page_exists(path: Path) -> None:
    named = re.findall(r"\btests/[\w/]+\.\w+", path.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_request_body_on_a_page_validates() -> None:
    bodies = [
        (re.findall(r"/generate[\w-]*", text[: match.start()])[-1], match[1])
        for text in (path.read_text() for path in PAGES)
        for match in re.finditer(r"-d '(\{.*?\})'", text)
    ]
    assert len(bodies) >= 8
    for route, body in bodies:
        schema = GenerateRequest if route == "/generate" else TaskRequest
        schema.model_validate(json.loads(body), strict=True)


def test_the_shown_response_is_a_valid_one() -> None:
    shown = json.loads(code_blocks(page("docs/generating.md"), "json")[0])
    assert GenerateUrlResponse.model_validate(shown, strict=True).model_dump() == shown
    on_request = {"analysis", "loop", "stems"}
    assert [*shown, "variations"] == [name for name in GenerateUrlResponse.model_fields if name not in on_request]


def test_the_shown_health_response_is_a_valid_one() -> None:
    shown = json.loads(code_blocks(page("docs/getting-started.md"), "json")[0])
    assert HealthResponse.model_validate(shown, strict=True).model_dump() == shown


def test_the_shown_models_file_is_valid(tmp_path: Path) -> None:
    (shown,) = code_blocks(page("docs/models.md"), "json")
    (tmp_path / "models.json").write_text(shown)
    catalog = Catalog(load_config({}, models_file=tmp_path / "models.json"))
    assert set(json.loads(shown)) <= {spec.name for spec in catalog}


def test_every_field_is_listed_with_its_default() -> None:
    def shown(default: object) -> str:
        if default is None:
            return "none"
        if isinstance(default, bool):
            return f"`{str(default).lower()}`"
        return f"`{default}`" if isinstance(default, str) else str(default)

    rows = first_cells(section("docs/generating.md", "Fields"))
    for name, field in GenerateRequest.model_fields.items():
        default = {"prompt": "required", "seed": "random"}.get(name, shown(field.default))
        with_melody = shown(MelodyRequest.model_fields.get(name, field).default)
        if name != "prompt" and with_melody != shown(field.default):
            default += f" (melody: {with_melody})"
        assert rows[name] == default


def test_every_format_is_listed() -> None:
    cells = re.findall(r"^\| (`.*?`) \|", section("docs/generating.md", "Fields"), re.MULTILINE)
    assert set(FORMATS) <= {name for cell in cells for name in re.findall(r"`([\w-]+)`", cell)}


def test_every_model_is_listed() -> None:
    cells = re.findall(r"^\| (`.*?`) \|", page("docs/models.md"), re.MULTILINE)
    listed = {name for cell in cells for name in re.findall(r"`([\w-]+)`", cell)}
    assert {spec.name for spec in Catalog(load_config({}))} <= listed


def test_every_limit_is_listed() -> None:
    listed = set(re.findall(r"\| `([A-Z_]+)` \|", section("docs/security.md", "Limits and quotas")))
    limits = {
        name.upper() for name in all_settings() if re.search(r"^(address_)?requests_per|_per_day|^concurrent_", name)
    }
    assert listed == limits


def test_the_changelog_has_the_version() -> None:
    sections = re.findall(r"^## \[(.*?)\]( - \d{4}-\d{2}-\d{2})?$", page("CHANGELOG.md"), re.MULTILINE)
    assert sections[0] == ("Unreleased", "")
    assert sections[1][0] == __version__
    assert all(date for _, date in sections[1:])
