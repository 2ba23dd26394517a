"""What a route says about itself beside its URL rule: OpenAPI is made from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel

View = TypeVar("View", bound=Callable[..., Any])


@dataclass(frozen=True)
class Operation:
    """One documented route. `answers` maps a status to the schemas, or the media types, of its bodies.

    `headers` are those of the answers, beside the ones of every answer; `request_headers` maps a name to its schema.
    """

    summary: str
    tag: str
    answers: Mapping[int, tuple[type[BaseModel] | str, ...]]
    description: str = ""
    json: type[BaseModel] | None = None
    form: type[BaseModel] | None = None
    examples: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    errors: tuple[int, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    request_headers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    query: type[BaseModel] | None = None


def operation(documented: Operation) -> Callable[[View], View]:
    """Attach an operation to a view."""

    def attach(view: View) -> View:
        view.operation = documented  # type: ignore[attr-defined]
        return view

    return attach
