"""What a route says about itself beside its URL rule: who may call it, and what OpenAPI is made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

from pydantic import BaseModel

View = TypeVar("View", bound=Callable[..., Any])


class Access(Enum):
    """Who may call a route, where keys are configured."""

    OPEN = "open"  # everybody
    LINK = "link"  # who has the scope `read`; everybody where the settings leave audio links open
    READ = "read"  # who has this scope, and so on
    GENERATE = "generate"
    ADMIN = "admin"


@dataclass(frozen=True)
class Operation:
    """One documented route. `answers` maps a status to the schemas, or the media types, of its bodies.

    `headers` are those of the answers, beside the ones of every answer; `request_headers` maps a name to its schema.
    """

    summary: str
    tag: str
    access: Access
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
        return access(documented.access)(view)

    return attach


def access(decision: Access) -> Callable[[View], View]:
    """Attach to a view who may call it; for routes that OpenAPI does not name."""

    def attach(view: View) -> View:
        view.access = decision  # type: ignore[attr-defined]
        return view

    return attach
