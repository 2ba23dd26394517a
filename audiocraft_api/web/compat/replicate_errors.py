"""The errors of Replicate's routes."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from audiocraft_api.web.operations import Dialect


def error_body(status: int, code: str, message: str, details: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Return an error as problem details (RFC 9457), and its status. Clients show nothing but the standard fields."""
    status = 422 if status == 400 else status
    detail = " ".join(part for part in (message, details.get("suggestion")) if part)
    body: dict[str, Any] = {"title": HTTPStatus(status).phrase, "detail": detail, "status": status, "code": code}
    if errors := details.get("errors"):
        body["invalid_fields"] = [
            {"field": f"input.{name}", "description": text} for name, found in errors.items() for text in found
        ]
    return body, status


DIALECT = Dialect(error_body)
