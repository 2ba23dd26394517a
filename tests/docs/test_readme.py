"""What the README shows is true to form: its requests validate, its answer has the fields, its tables the values."""

from __future__ import annotations

import json
import re
from pathlib import Path

from audiocraft_api.audio.convert import FORMATS
from audiocraft_api.config import load_config
from audiocraft_api.model.catalog import Catalog
from audiocraft_api.web.schemas import GenerateRequest, GenerateUrlResponse, MelodyRequest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
FIELDS = README.partition("### Fields")[2].partition("\n## ")[0]


def test_the_answer_that_is_shown_is_one() -> None:
    shown = json.loads(re.findall(r"```json\n(.*?)```", README, re.DOTALL)[0])
    assert GenerateUrlResponse.model_validate(shown, strict=True).model_dump() == shown
    assert list(shown) == list(GenerateUrlResponse.model_fields)


def test_every_request_that_is_shown_validates() -> None:
    bodies = re.findall(r"-d '(\{.*?\})'", README)
    assert len(bodies) >= 3
    for body in bodies:
        GenerateRequest.model_validate(json.loads(body), strict=True)


def test_the_models_file_that_is_shown_is_taken(tmp_path: Path) -> None:
    shown = re.findall(r"```json\n(.*?)```", README, re.DOTALL)[1]
    (tmp_path / "models.json").write_text(shown)
    catalog = Catalog(load_config({}, models_file=tmp_path / "models.json"))
    assert set(json.loads(shown)) <= {spec.name for spec in catalog}


def test_every_field_and_its_default_are_listed() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*?) \|", FIELDS, re.MULTILINE))
    for name, field in GenerateRequest.model_fields.items():
        default = {"prompt": "required", "seed": "drawn"}.get(name)
        if name == "duration":
            default = f"{field.default:g} (melody: {MelodyRequest.model_fields[name].default:g})"
        elif default is None:
            default = f"`{field.default}`" if isinstance(field.default, str) else str(field.default)
        assert rows[name] == default


def test_every_format_and_every_model_is_listed() -> None:
    first_cells = re.findall(r"^\| (`.*?`) \|", README, re.MULTILINE)
    listed = {name for cell in first_cells for name in re.findall(r"`([\w-]+)`", cell)}
    assert set(FORMATS) <= listed
    assert {spec.name for spec in Catalog(load_config({}))} <= listed


def test_every_file_that_is_linked_is_there() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert len(links) >= 4
    assert [link for link in links if not (ROOT / link).exists()] == []
