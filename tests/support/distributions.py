"""Hides installed packages from a Python process, as if only some distributions were installed."""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

HIDING = """
import re, sys

KEPT, HIDDEN, PLACE = {kept!r}, {hidden!r}, {place!r}


class Hiding:
    def __init__(self, finder):
        self._finder = finder

    def __getattr__(self, name):
        return getattr(self._finder, name)

    def find_spec(self, name, path=None, target=None):
        spec = self._finder.find_spec(name, path, target)
        if spec and name in HIDDEN:
            places = [spec.origin or "", *(spec.submodule_search_locations or [])]
            return None if any(place.startswith(PLACE) for place in places) else spec
        return spec

    def find_distributions(self, *arguments):
        for found in self._finder.find_distributions(*arguments):
            is_kept = re.sub("[-_.]+", "-", found.metadata["Name"]).lower() in KEPT
            if is_kept or not str(found.locate_file("")).startswith(PLACE):
                yield found


sys.meta_path[:] = [Hiding(each) if hasattr(each, "find_distributions") else each for each in sys.meta_path]
for name in HIDDEN & set(sys.modules):  # what a .pth file has imported
    del sys.modules[name]
"""


def hide_all_but(kept: Iterable[str], directory: Path) -> Path:
    """Write a `sitecustomize` into a directory, which is returned.

    On PYTHONPATH, it hides all other distributions of this environment, but not what else is on PYTHONPATH.
    """
    kept = {normalized(name) for name in kept}
    modules = metadata.packages_distributions()
    hidden = {name for name, owners in modules.items() if not kept & set(map(normalized, owners))}
    (directory / "sitecustomize.py").write_text(
        HIDING.format(kept=kept, hidden=hidden, place=sysconfig.get_path("purelib"))
    )
    return directory


def locked(lock: Path) -> set[str]:
    """Return the distributions that a lock names for this machine and this Python."""
    lines = re.findall(r"(?m)^([a-z][^\\\n]*==[^\\\n]*)", lock.read_text())
    requirements = [Requirement(line) for line in lines]
    return {each.name for each in requirements if each.marker is None or each.marker.evaluate()}


def required_by(*names: str) -> set[str]:
    """Return distributions, and those that they require, directly or not."""
    found, left = set(), list(names)
    while left:
        name = normalized(left.pop())
        if name in found:
            continue
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # required on other platforms, or left out of the lock
            continue
        found.add(name)
        parsed = map(Requirement, requirements)
        left += [each.name for each in parsed if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


def normalized(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()
