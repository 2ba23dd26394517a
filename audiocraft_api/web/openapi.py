"""Generates the OpenAPI document from the routes, their operations and the schemas that validate.

No library does it, because the document must match the strict parser: closed objects, one error shape, file fields.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from flask import Flask
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema
from werkzeug.routing import Rule

from audiocraft_api import __version__
from audiocraft_api.web.errors import SENTENCES
from audiocraft_api.web.operations import Access, Operation, operation_of
from audiocraft_api.web.schemas.responses import ErrorResponse

JSON = "application/json"
REF = "#/components/schemas/{model}"
ERROR_SENTENCES = SENTENCES | {
    400: "A field is missing, unknown or out of range.",
    404: "The task, file or model does not exist, or belongs to another caller.",
    409: "The model is in use. Try again later, or ask to wait until it is not.",
    501: "This server sends generations to other machines: it can neither stream audio nor load models.",
    503: "The server is at capacity or not ready. Try again after the time in `Retry-After`.",
    504: "The audio was not ready in time. Request less audio, or submit a task.",
}
REQUEST_ID = {"X-Request-ID": {"description": "ID of this request in the server's log.", "schema": {"type": "string"}}}
RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait before trying again.", "schema": {"type": "integer"}}}
CHALLENGE = {"WWW-Authenticate": {"description": "Authentication scheme to use.", "schema": {"type": "string"}}}
ERROR_HEADERS = {401: CHALLENGE, 429: RETRY_AFTER, 503: RETRY_AFTER}
SECURITY_SCHEMES = {
    "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key of this service."},
    "Bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, or a JSON Web Token on servers that accept them.",
    },
}


def build_openapi(
    app: Flask, model_sizes: Mapping[type[BaseModel], Sequence[str]], needs_key: Callable[[Access], bool]
) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of an app.

    `model_sizes` lists the model names that each request schema accepts; `needs_key` returns whether a
    route requires a key.
    """
    documented = [(rule, found) for rule in app.url_map.iter_rules() if (found := operation_of(app, rule.endpoint))]
    paths: dict[str, dict[str, Any]] = {}
    for rule, found in documented:
        for method in sorted((rule.methods or set()) & {"GET", "POST", "PUT", "PATCH", "DELETE"}):
            path = re.sub(r"<(?:[^:<>]+:)?([^<>]+)>", r"{\1}", rule.rule)
            paths.setdefault(path, {})[method.lower()] = _path_item(rule, found) | {
                "security": [{name: []} for name in SECURITY_SCHEMES] if needs_key(found.access) else []
            }
    schemas = _component_schemas([found for _, found in documented])
    for schema, names in model_sizes.items():
        schemas[schema.__name__]["properties"]["model_size"]["enum"] = list(names)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "AudioCraft API",
            "version": __version__,
            "description": "Generates music from text, and from melodies, with Meta's MusicGen.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": dict(sorted(paths.items())),
        "components": {"schemas": schemas, "securitySchemes": SECURITY_SCHEMES},
    }


def _component_schemas(operations: Sequence[Operation]) -> dict[str, Any]:
    wanted: dict[tuple[type[BaseModel], JsonSchemaMode], None] = {(ErrorResponse, "serialization"): None}
    for found in operations:
        wanted |= {(schema, "validation"): None for schema in (found.json, found.form) if schema}
        schemas = [body for bodies in found.responses.values() for body in bodies if not isinstance(body, str)]
        wanted |= {(schema, "serialization"): None for schema in (*schemas, *found.error_schemas.values())}
    _, document = models_json_schema(list(wanted), ref_template=REF)
    return dict(document["$defs"])


def _path_item(rule: Rule, found: Operation) -> dict[str, Any]:
    item: dict[str, Any] = {
        "operationId": rule.endpoint.rsplit(".", 1)[-1],
        "summary": found.summary,
        "tags": [found.tag],
        "responses": {
            str(status): _response(status, bodies, found.headers) for status, bodies in found.responses.items()
        }
        | {str(status): _error(status, found) for status in sorted(_error_statuses(found))}
        | {"default": _error(500, found)},
    }
    if found.description:
        item["description"] = found.description
    if parameters := _parameters(found):
        item["parameters"] = parameters
    if body := _request_body(found):
        item["requestBody"] = body
    return item


def _error_statuses(found: Operation) -> set[int]:
    """Return the declared errors and those that every operation of this kind can have."""
    statuses = set(found.errors)
    if found.access is not Access.OPEN:
        statuses |= {401, 403, 429, 503}
    if found.json or found.form:
        statuses |= {400, 411, 413, 415}
    if found.query:
        statuses.add(400)
    if found.parameters:
        statuses.add(404)
    return statuses


def _parameters(found: Operation) -> list[dict[str, Any]]:
    query = found.query.model_json_schema()["properties"] if found.query else {}
    return [
        *(
            {"name": name, "in": "path", "required": True, "description": text, "schema": {"type": "string"}}
            for name, text in found.parameters.items()
        ),
        *({"name": name, "in": "query", "schema": schema} for name, schema in query.items()),
        *({"name": name, "in": "header", "schema": dict(schema)} for name, schema in found.request_headers.items()),
    ]


def _request_body(found: Operation) -> dict[str, Any] | None:
    for schema, media_type in ((found.json, JSON), (found.form, "multipart/form-data")):
        if schema:
            content: dict[str, Any] = {"schema": _ref(schema)}
            if schema.EXAMPLES:
                content["examples"] = {name: {"value": dict(value)} for name, value in schema.EXAMPLES.items()}
            return {"required": True, "content": {media_type: content}}
    return None


def _response(status: int, bodies: Sequence[type[BaseModel] | str], headers: Mapping[str, str]) -> dict[str, Any]:
    schemas = [_ref(body) for body in bodies if not isinstance(body, str)]
    content: dict[str, Any] = {body: {} for body in bodies if isinstance(body, str)}
    if schemas:
        content[JSON] = {"schema": schemas[0] if len(schemas) == 1 else {"oneOf": schemas}}
    described = {name: {"description": text, "schema": {"type": "string"}} for name, text in headers.items()}
    response: dict[str, Any] = {"description": HTTPStatus(status).phrase, "headers": REQUEST_ID | described}
    return response | ({"content": content} if content else {})


def _error(status: int, found: Operation) -> dict[str, Any]:
    return {
        "description": ERROR_SENTENCES[status],
        "headers": REQUEST_ID | ERROR_HEADERS.get(status, {}),
        "content": {JSON: {"schema": _ref(found.error_schemas.get(status, ErrorResponse))}},
    }


def _ref(schema: type[BaseModel]) -> dict[str, str]:
    return {"$ref": REF.format(model=schema.__name__)}
