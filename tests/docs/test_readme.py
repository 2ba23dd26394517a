"""The README is short, and its tables list what the service has."""

from __future__ import annotations

import re

from audiocraft_api.config import load_config
from audiocraft_api.factory import create_app
from audiocraft_api.model.catalog import Catalog
from support.documents import page, section

MAX_WORDS = 900


def test_the_readme_is_short() -> None:
    assert len(page("README.md").split()) <= MAX_WORDS


def test_the_readme_lists_every_endpoint() -> None:
    rows = re.findall(r"^\| (`.*?`) \|", section("README.md", "Endpoints"), re.MULTILINE)
    listed = {tuple(endpoint.split()) for row in rows for endpoint in re.findall(r"`(.*?)`", row)}
    rules = create_app(load_config({})).url_map.iter_rules()
    served = {
        (method, rule.rule.replace("<path:", "<"))
        for rule in rules
        if not rule.endpoint.startswith("compat_")  # docs/compatibility.md lists them
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    pages = {("GET", "/docs/static/<filename>")}
    assert listed == served - pages


def test_the_readme_lists_every_model() -> None:
    cells = re.findall(r"^\| (`.*?`) \|", section("README.md", "Models and licenses"), re.MULTILINE)
    listed = [name for cell in cells for name in re.findall(r"`([\w-]+)`", cell)]
    assert sorted(listed) == sorted(["model_size", *(spec.name for spec in Catalog(load_config({})))])
