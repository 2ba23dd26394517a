"""Reads the `Prefer` header (RFC 7240): whether, and how long, a client wants to wait."""

from __future__ import annotations

from dataclasses import dataclass

from flask import request


@dataclass(frozen=True)
class Preference:
    """Answer with a task: at once, or when `wait_seconds` have passed."""

    wait_seconds: int
    applied: str  # for the header Preference-Applied


def preference(max_wait_seconds: float) -> Preference | None:
    """Return what the client of the current request prefers; None when it wants to wait to the end.

    As the RFC says: of a repeated preference the first counts, unknown and malformed ones are ignored.
    """
    found: dict[str, str] = {}
    for part in ",".join(request.headers.getlist("Prefer")).split(","):
        name, _, value = part.split(";", 1)[0].partition("=")
        found.setdefault(name.strip().lower(), value.strip().strip('"'))
    applied = ["respond-async"] if "respond-async" in found else []
    wait = found.get("wait", "")
    seconds = 0
    if wait.isascii() and wait.isdigit():
        seconds = int(min(float(wait), max_wait_seconds))
        applied.append(f"wait={seconds}")
    return Preference(seconds, ", ".join(applied)) if applied else None
