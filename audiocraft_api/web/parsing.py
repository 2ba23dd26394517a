"""Parses request bodies and queries strictly into schemas. Each error is a sentence that names the field.

JSON is parsed here and not by Flask, so that duplicate keys, NaN and the like are refused and all errors look alike.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from typing import Any, TypeVar, get_args

from flask import Request, abort, request
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from werkzeug.datastructures import FileStorage, MultiDict
from werkzeug.exceptions import LengthRequired
from werkzeug.formparser import FormDataParser

from audiocraft_api.core.errors import InvalidRequest, StorageUnavailable, UnsupportedMediaType
from audiocraft_api.web.schemas.base import RequestSchema
from audiocraft_api.web.schemas.performance import PERFORMANCE_TAGS
from audiocraft_api.web.services import services

FORM_TYPES = ("multipart/form-data", "application/x-www-form-urlencoded")
MAX_ERRORS = 20  # a body with ten thousand unknown fields must not cause ten thousand sentences

Schema = TypeVar("Schema", bound=RequestSchema)

logger = logging.getLogger(__name__)


class StrictRequest(Request):
    """A request whose form raises ValueError if it cannot be read. By default it would then have no fields."""

    def make_form_data_parser(self) -> FormDataParser:
        parser = super().make_form_data_parser()
        parser.silent = False
        return parser


def parse_json(schema: type[Schema]) -> Schema:
    """Validate the JSON body of the current request. Raises InvalidRequest, UnsupportedMediaType, 413."""
    return validate(schema, read_json_object(), strict=True)


def read_json_object(max_bytes: int | None = None) -> dict[str, Any]:
    """Return the JSON object in the body of the current request. Raises InvalidRequest, UnsupportedMediaType, 413."""
    if request.mimetype != "application/json":
        raise UnsupportedMediaType("Send the body as JSON with the header Content-Type: application/json.")
    if request.mimetype_params.get("charset", "utf-8").lower() not in ("utf-8", "utf8"):
        raise InvalidRequest("The JSON must be encoded as UTF-8.")
    request.max_content_length = max_bytes or services().config.audio.max_json_bytes
    try:
        text = request.get_data(cache=False).decode("utf-8-sig")  # some editors write a byte order mark
    except UnicodeDecodeError:
        raise InvalidRequest("The JSON must be encoded as UTF-8.") from None
    return _load_object(text)


def parse_json_text(schema: type[Schema], text: str) -> Schema:
    """Validate a JSON object. Raises InvalidRequest."""
    return validate(schema, _load_object(text), strict=True)


def _load_object(text: str) -> dict[str, Any]:
    value = _load_json(text)
    if not isinstance(value, dict):
        raise InvalidRequest("The request body must be a JSON object.")
    return value


def read_form() -> tuple[MultiDict[str, FileStorage], MultiDict[str, str]]:
    """Return the files and the texts of the current request's form. Large files are on disk.

    Raises InvalidRequest, UnsupportedMediaType, StorageUnavailable, 413.
    """
    if request.mimetype not in FORM_TYPES and (request.mimetype or request.content_length):
        raise UnsupportedMediaType("Send the body as a form with the header Content-Type: multipart/form-data.")
    try:
        files, texts = request.files, request.form
    except ValueError as error:
        logger.info("Could not read a form: %s", error)
        raise InvalidRequest(
            f"The body is not a valid {request.mimetype} form. Check its boundaries, its end and the encoding of its "
            "headers (UTF-8), or let your HTTP client write the form."
        ) from None
    except OSError as error:  # from the temporary file for a large upload, not from the connection
        logger.error("Could not write an upload to a temporary file: %s", error)
        raise StorageUnavailable("The server cannot store the upload at the moment. Try again later.") from error
    if None in (*files, *texts):
        raise InvalidRequest("A part of the form has no name. Give each part a name in its Content-Disposition header.")
    return files, texts


def parse_form(schema: type[Schema], file_field: str, missing_file: str, in_place_of_file: str | None = None) -> Schema:
    """Validate the form of the current request, with numbers as text and one file. Raises as `parse_json`.

    An empty optional field means its default: browsers send every field of a form. Without the file the error is
    `missing_file`, whatever other field is wrong, unless there is the field `in_place_of_file`, which must then not be
    empty. Raises also StorageUnavailable.
    """
    files, texts = read_form()
    has_file = any(upload.filename for upload in files.getlist(file_field))
    if not has_file and in_place_of_file not in texts:
        raise InvalidRequest(missing_file, {file_field: [missing_file]})
    given: list[tuple[str, list[Any]]] = [*texts.lists(), *files.lists()]
    fields: dict[str, Any] = {}
    for name, values in given:
        if len(values) > 1 or name in fields:
            raise _repeated(name)
        fields[name] = "" if _is_no_file(values[0]) else values[0]
    optional = {name for name, field in schema.model_fields.items() if not field.is_required()}
    if not has_file:
        optional.discard(in_place_of_file or "")
    return validate(
        schema, {name: value for name, value in fields.items() if value != "" or name not in optional}, strict=False
    )


def _is_no_file(value: Any) -> bool:
    """Return whether a browser sent this for a file field in which no file was chosen."""
    return isinstance(value, FileStorage) and not value.filename


def parse_query(schema: type[Schema]) -> Schema:
    """Validate the query of the current request. Raises InvalidRequest."""
    fields = {}
    for name, values in request.args.lists():
        if len(values) > 1:
            raise _repeated(name)
        fields[name] = values[0]
    return validate(schema, fields, strict=False)


def refuse_leading_slashes() -> None:
    """Respond with 404 to a path that begins with two slashes: werkzeug would take the second one away."""
    if request.environ["PATH_INFO"].startswith("//"):
        abort(404)


def require_sized_body() -> None:
    """Refuse a body of unknown length (411) before reading any of it."""
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
        raise InvalidRequest("The JSON contains a number with too many digits.") from None


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise _repeated(Counter(name for name, _ in pairs).most_common(1)[0][0])
    return value


def validate(schema: type[Schema], fields: dict[str, Any], *, strict: bool) -> Schema:
    """Validate fields that have been read; numbers and booleans may be text unless `strict`. Raises InvalidRequest."""
    if not strict:
        fields = {name: _without_digit_separators(schema, name, value) for name, value in fields.items()}
    conflicts = schema.conflicts(fields)
    errors = {name: [f"{name} {rule}."] for name, rule in conflicts.items()}
    try:
        found = schema.model_validate({_printable(name): value for name, value in fields.items()}, strict=strict)
        if not errors:
            return found
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_input=False)[:MAX_ERRORS]:
            name = str(detail["loc"][0])
            if name not in conflicts:
                errors.setdefault(name, []).append(_sentence(_path(detail["loc"]), detail))
    raise _refusal(errors)


def _without_digit_separators(schema: type[BaseModel], name: str, value: Any) -> Any:
    """Keep pydantic from reading `1_0` as the number 10. Only text may contain an underscore."""
    field = schema.model_fields.get(name)
    is_text = field is not None and _contains_text(field.annotation)
    return value if is_text or not isinstance(value, str) else value.replace("_", " ")


def _contains_text(annotation: Any) -> bool:
    """Return whether a field's type is text, optional or with further rules."""
    return annotation is str or any(_contains_text(part) for part in get_args(annotation))


def _repeated(name: str) -> InvalidRequest:
    return _refusal({_printable(name): [f"{_printable(name)} must be given only once."]})


def _refusal(errors: dict[str, list[str]]) -> InvalidRequest:
    return InvalidRequest(" ".join(sentences[0] for sentences in list(errors.values())[:3]), errors)


def _sentence(name: str, detail: ErrorDetails) -> str:
    """Describe a pydantic error in the terms of the API."""
    match detail["type"]:
        case "missing":
            return f"{name} is required."
        case "extra_forbidden":
            return f"{name} is not a field of this request; remove it."
        case "string_unicode":
            return f"{name} is not valid Unicode text."
        case "value_error":
            return f"{name} {detail['ctx']['error']}."
    message = detail["msg"].removeprefix("Input should ").removeprefix("String should ")
    return f"{name} must {message.split(', unable')[0]}."


def _path(location: tuple[int | str, ...]) -> str:
    """Return the name of a field, which may be inside a list: `segments[0].prompt`."""
    parts = [part for part in location if part not in PERFORMANCE_TAGS]
    return "".join(f"[{part}]" if isinstance(part, int) else f".{_printable(part)}" for part in parts)[1:]


def _printable(name: str) -> str:
    """Make a field name, which the client chose, safe to show."""
    return name[:64].encode("ascii", "backslashreplace").decode()
