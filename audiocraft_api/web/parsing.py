"""Turns request bodies into validated schemas, strictly. Each refusal is a sentence that names the field.

JSON is parsed here and not by Flask: duplicate keys, NaN and the like must be refused, and every failure has one shape.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from typing import Any, TypeVar

from flask import request
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from werkzeug.exceptions import LengthRequired

from audiocraft_api.core.errors import InvalidRequest, StorageUnavailable, UnsupportedMediaType

FORM_TYPES = ("multipart/form-data", "application/x-www-form-urlencoded")
MAX_ERRORS = 20  # a body of ten thousand unknown fields gets no answer of ten thousand sentences

Schema = TypeVar("Schema", bound=BaseModel)

logger = logging.getLogger(__name__)


def parse_json(schema: type[Schema], max_bytes: int) -> Schema:
    """Validate the JSON body of the current request. Raises InvalidRequest, UnsupportedMediaType, 413."""
    if request.mimetype != "application/json":
        raise UnsupportedMediaType("Send JSON with the header Content-Type: application/json.")
    if request.mimetype_params.get("charset", "utf-8").lower() not in ("utf-8", "utf8"):
        raise InvalidRequest("JSON must be encoded as UTF-8.")
    request.max_content_length = max_bytes
    try:
        text = request.get_data(cache=False).decode()
    except UnicodeDecodeError:
        raise InvalidRequest("JSON must be encoded as UTF-8.") from None
    return parse_json_text(schema, text)


def parse_json_text(schema: type[Schema], text: str) -> Schema:
    """Validate a JSON object. Raises InvalidRequest."""
    value = _load_json(text)
    if not isinstance(value, dict):
        raise InvalidRequest("The request body must be a JSON object with the fields of the request.")
    return _validate(schema, value, strict=True)


def parse_form(schema: type[Schema], file_field: str, missing_file: str) -> Schema:
    """Validate the form of the current request, numbers as text, with its one file. Raises as `parse_json`.

    Without the file the answer is `missing_file`, whatever else is wrong. Raises StorageUnavailable too.
    """
    if request.mimetype not in FORM_TYPES and (request.mimetype or request.content_length):
        raise UnsupportedMediaType("Send a form with the header Content-Type: multipart/form-data.")
    try:
        files, texts = request.files, request.form
    except UnicodeError:
        raise InvalidRequest("The form cannot be read.") from None
    except OSError as error:  # of the temporary file that a large upload goes into, not of the connection
        logger.error("An upload could not be kept: %s", error)
        raise StorageUnavailable("There is no room for the upload now; try again later.") from error
    if not any(upload.filename for upload in files.getlist(file_field)):
        raise InvalidRequest(missing_file, {file_field: [missing_file]})
    given: list[tuple[str, list[Any]]] = [*texts.lists(), *files.lists()]
    fields: dict[str, Any] = {}
    for name, values in given:
        if len(values) > 1 or name in fields:
            raise _given_twice(name)
        fields[name] = values[0]
    return _validate(schema, fields, strict=False)


def parse_query(schema: type[Schema]) -> Schema:
    """Validate the query of the current request. Raises InvalidRequest."""
    fields = {}
    for name, values in request.args.lists():
        if len(values) > 1:
            raise _given_twice(name)
        fields[name] = values[0]
    return _validate(schema, fields, strict=False)


def require_sized_body() -> None:
    """Answer 411 to a body of unknown length, before anything of it is read."""
    if request.content_length is None and "Transfer-Encoding" in request.headers:
        raise LengthRequired


def _load_json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object_without_duplicates)
    except RecursionError:
        raise InvalidRequest("The JSON is nested too deeply.") from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(
            f"The request body is not valid JSON (line {error.lineno}, column {error.colno})."
        ) from None
    except ValueError:  # an integer of thousands of digits
        raise InvalidRequest("The JSON has a number that is too long.") from None


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise _given_twice(Counter(name for name, _ in pairs).most_common(1)[0][0])
    return value


def _validate(schema: type[Schema], fields: dict[str, Any], *, strict: bool) -> Schema:
    try:
        return schema.model_validate({_printable(name): value for name, value in fields.items()}, strict=strict)
    except ValidationError as error:
        errors: dict[str, list[str]] = {}
        for detail in error.errors(include_url=False, include_input=False)[:MAX_ERRORS]:
            name = str(detail["loc"][0])
            errors.setdefault(name, []).append(_sentence(name, detail))
        raise _refusal(errors) from None


def _given_twice(name: str) -> InvalidRequest:
    return _refusal({_printable(name): [f"{_printable(name)} is given more than once."]})


def _refusal(errors: dict[str, list[str]]) -> InvalidRequest:
    return InvalidRequest(" ".join(sentences[0] for sentences in list(errors.values())[:3]), errors)


def _sentence(name: str, detail: ErrorDetails) -> str:
    """Say in words of the API what pydantic found."""
    match detail["type"]:
        case "missing":
            return f"{name} is required."
        case "extra_forbidden":
            return f"{name} is not a field of this request."
        case "string_unicode":
            return f"{name} is not valid Unicode text."
        case "value_error":
            return f"{name} {detail['ctx']['error']}."
    message = detail["msg"].removeprefix("Input should ").removeprefix("String should ")
    return f"{name} must {message.split(', unable')[0]}."


def _printable(name: str) -> str:
    """Make a field's name, which the client chose, fit for an answer."""
    return name[:64].encode("ascii", "backslashreplace").decode()
