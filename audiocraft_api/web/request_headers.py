"""Request headers that routes have in common, read and documented: `Prefer` and `Idempotency-Key`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from flask import request

from audiocraft_api.core.errors import InvalidRequest

_KEY_PATTERN = r"^[\x21-\x7e]{1,255}$"
IDEMPOTENCY_KEY: dict[str, dict[str, Any]] = {
    "Idempotency-Key": {
        "type": "string",
        "pattern": _KEY_PATTERN,
        "description": "Makes a retry safe: the same key with the same request returns the task that the first "
        "request created; with a different request the status is 422. A key is remembered as long as its task.",
    }
}
PREFER: dict[str, dict[str, Any]] = {
    "Prefer": {
        "type": "string",
        "description": "`respond-async`, or `wait=N` with N in seconds (RFC 7240).",
        "examples": ["wait=10"],
    },
    **IDEMPOTENCY_KEY,
}


@dataclass(frozen=True)
class Preference:
    """The client prefers a task to a longer wait: after `wait_seconds`, or at once if that is 0."""

    wait_seconds: int
    applied: str  # value of the response header Preference-Applied


def parse_preference(max_wait_seconds: float) -> Preference | None:
    """Return the preference of the current request; None when the client wants to wait for the audio.

    As in RFC 7240, the first of repeated preferences counts, and unknown or malformed ones are ignored.
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


def parse_idempotency_key() -> str | None:
    """Return the idempotency key of the current request, if any. Raises InvalidRequest for a malformed one."""
    key = request.headers.get("Idempotency-Key")
    if key is not None and not re.fullmatch(_KEY_PATTERN, key):
        sentence = "Idempotency-Key must be 1 to 255 visible ASCII characters without spaces."
        raise InvalidRequest(sentence, {"Idempotency-Key": [sentence]})
    return key
