"""Translates the fields of another service's request to the fields of this API, and its names in errors back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator

from audiocraft_api.audio.convert import ALL_FORMATS
from audiocraft_api.core.errors import InvalidRequest
from audiocraft_api.web.parsing import validate
from audiocraft_api.web.schemas.generation import StreamRequest
from audiocraft_api.web.services import services


def _known_format(name: str) -> str:
    if name not in ALL_FORMATS:
        raise ValueError(f"must be one of {', '.join(ALL_FORMATS)}")
    return name


class CompatRequest(StreamRequest):
    """A text-to-music request that another service's client sent. It may have that service's formats."""

    output_format: Annotated[str, AfterValidator(_known_format)] = "wav"


@dataclass(frozen=True)
class Translation:
    """The fields of another service's request. Those that are not listed are ignored, and so is null.

    `fields` maps its names to names of `CompatRequest`, `accepted` a field that cannot be honored to the values that
    change nothing, and `conversions` a field to the function that converts its number.
    """

    fields: Mapping[str, str]
    accepted: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    conversions: Mapping[str, Callable[[float], float]] = field(default_factory=dict)

    def fields_of(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a request under the names of this API. Raises InvalidRequest."""
        given = {name: value for name, value in body.items() if value is not None}
        for name, values in self.accepted.items():
            if name in given and given[name] not in values:
                expected = " or ".join(repr(value) for value in values)
                raise refusal(
                    name, f"is not supported by this server. Leave it out{expected and f' or send {expected}'}."
                )
        found: dict[str, Any] = {}
        names: dict[str, str] = {}
        for name, ours in self.fields.items():
            if name not in given:
                continue
            if ours in names:
                raise refusal(name, f"means the same as {names[ours]}. Send only one of them.")
            names[ours] = name
            found[ours] = self._converted(name, given[name])
        return found

    def names_of(self, body: Mapping[str, Any]) -> dict[str, str]:
        """Return the names in a request by the names of this API; without a field of the request, its first name."""
        names = {ours: name for name, ours in reversed(list(self.fields.items()))}
        return names | {ours: name for name, ours in self.fields.items() if body.get(name) is not None}

    def _converted(self, name: str, value: Any) -> Any:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return self.conversions[name](value) if name in self.conversions and is_number else value


def refusal(name: str, rule: str) -> InvalidRequest:
    """Return the error of a field."""
    sentence = f"{name} {rule}"
    return InvalidRequest(sentence, {name: [sentence]})


def request_of(fields: dict[str, Any]) -> CompatRequest:
    """Validate fields under the names of this API. Raises InvalidRequest."""
    return validate(CompatRequest, fields | {"model_size": model_named(fields.get("model_size"))}, strict=True)


def model_named(name: Any) -> Any:
    """Return this server's name of a model, which may be called as on the hub; the default model for None."""
    if name is None:
        return services().config.compat.compat_model
    for spec in services().catalog:
        if name in (spec.checkpoint, spec.checkpoint.rpartition("/")[2]) and not spec.is_built_in:
            return spec.name
    return name


@contextmanager
def renamed(names: Mapping[str, str]) -> Iterator[None]:
    """Let an InvalidRequest that the block raises speak of fields by the client's names."""
    try:
        yield
    except InvalidRequest as error:
        pattern = re.compile(rf"\b({'|'.join(names)})\b")

        def translated(text: str) -> str:
            return pattern.sub(lambda found: names[found[0]], text)

        errors = {
            translated(name).partition(" ")[0]: [translated(text) for text in texts]
            for name, texts in error.errors.items()
        }
        raise InvalidRequest(translated(error.message), errors) from error
