"""Reads the documentation: its pages, the code blocks and the headings on them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])


def page(name: str) -> str:
    """Return the text of a page, such as `docs/tasks.md`."""
    return (ROOT / name).read_text()


def section(name: str, heading: str) -> str:
    """Return what follows a heading of a page, up to the next heading of the same level."""
    level, rest = re.split(rf"^(#+) {re.escape(heading)}\n", page(name), maxsplit=1, flags=re.MULTILINE)[1:]
    return re.split(rf"^{level} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def code_blocks(text: str, language: str) -> list[str]:
    """Return the code blocks of a text that are in a language."""
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub makes of the headings of a page."""
    without_code = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", without_code, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
