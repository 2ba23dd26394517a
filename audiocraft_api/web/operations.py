"""Declares a route: who may call it, what it accepts and what it responds with.

One decorator validates the request and feeds OpenAPI, so that the two cannot disagree.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeAlias, TypeVar, cast

from flask import Flask
from pydantic import BaseModel

from audiocraft_api.web.parsing import parse_form, parse_json, parse_query
from audiocraft_api.web.schemas.base import RequestSchema
from audiocraft_api.web.schemas.forms import FormFields
from audiocraft_api.web.schemas.generation import TextFields
from audiocraft_api.web.schemas.responses import ErrorResponse

View = TypeVar("View", bound=Callable[..., Any])


ErrorBody: TypeAlias = Callable[[int, str, str, Mapping[str, Any]], tuple[dict[str, Any], int]]


class Access(Enum):
    """Who may call a route where API keys are configured."""

    OPEN = "open"  # everyone
    LINK = "link"  # callers with the scope `read`, or everyone if the settings leave audio links open
    READ = "read"  # callers with the scope of this name, as with the ones below
    GENERATE = "generate"
    ADMIN = "admin"


@dataclass(frozen=True)
class Operation:
    """Decorates a view. A view with `json`, `form` or `query` gets the validated model as its first argument.

    `responses` maps a status to the schemas or media types of its bodies. `errors` lists statuses beyond those that
    follow from the body, the path parameters and the access; `error_schemas` maps a status to the schema of an error
    that has more fields than `ErrorResponse`. `request_headers` maps a name to its JSON schema.
    """

    summary: str
    tag: str
    access: Access
    responses: Mapping[int, tuple[type[BaseModel] | str, ...]]
    description: str = ""
    json: type[TextFields] | None = None
    form: type[FormFields] | None = None
    query: type[RequestSchema] | None = None
    errors: tuple[int, ...] = ()
    error_schemas: Mapping[int, type[ErrorResponse]] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    request_headers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __call__(self, view: View) -> View:
        @functools.wraps(view)
        def validated(*args: Any, **kwargs: Any) -> Any:
            return view(*self._parse(), *args, **kwargs)

        validated.operation = self  # type: ignore[attr-defined]
        return access(self.access)(cast(View, validated))

    def _parse(self) -> tuple[BaseModel, ...]:
        if self.json:
            return (parse_json(self.json),)
        if self.form:
            form = self.form
            return (parse_form(form, form.FILE_FIELD, form.MISSING_FILE, form.IN_PLACE_OF_FILE),)
        return (parse_query(self.query),) if self.query else ()


@dataclass(frozen=True)
class Dialect:
    """What clients of another service expect of the errors and the authentication of a route.

    `error` makes the body and the status from the status, the code, the message and the details of an error.
    """

    error: ErrorBody
    key_header: str | None = None  # may contain the API key, too
    key_query: str | None = None  # a query parameter that may; for WebSockets, on which pages cannot set headers


def dialect_of(app: Flask, endpoint: str | None) -> Dialect | None:
    """Return the dialect of a route; None for the routes of this API itself."""
    return getattr(app.view_functions.get(endpoint or ""), "dialect", None)


def operation_of(app: Flask, endpoint: str | None) -> Operation | None:
    """Return the operation of a route; None when the route has none or does not exist."""
    return getattr(app.view_functions.get(endpoint or ""), "operation", None)


def access(decision: Access, dialect: Dialect | None = None) -> Callable[[View], View]:
    """Declare who may call a view; on its own, for routes that are not part of OpenAPI."""

    def attach(view: View) -> View:
        view.access, view.dialect = decision, dialect  # type: ignore[attr-defined]
        return view

    return attach
