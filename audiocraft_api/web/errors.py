"""The one place where errors become responses: `{"error": sentence, "code", "request_id", "errors"?}`.

Routes that speak another service's dialect render the body themselves.
"""

from __future__ import annotations

import logging
import math
import re
from typing import Any

from flask import Flask, Response, current_app, jsonify, request
from werkzeug.exceptions import HTTPException

from audiocraft_api.core.errors import (
    AudioCraftError,
    InvalidRequest,
    LimitExceeded,
    PromptRefused,
    Unauthorized,
    Unavailable,
)
from audiocraft_api.web.context import request_id
from audiocraft_api.web.observing import count_error
from audiocraft_api.web.operations import dialect_of, operation_of
from audiocraft_api.web.schemas.responses import ErrorResponse

SENTENCES = {
    400: "The request is malformed.",
    401: "Invalid or missing API key",
    403: "You do not have permission to do this.",
    404: "There is nothing at this address. See /docs for the list of routes.",
    405: "This address does not support that method. The Allow header lists the supported methods.",
    410: "The audio was generated but is no longer stored.",
    411: "Send a Content-Length header. Chunked request bodies are not supported.",
    413: "The request body is too large.",
    415: "The content type of the request body is not supported.",
    416: "The requested range is outside the file.",
    422: "The prompt is not allowed on this server, or the Idempotency-Key was already used with a different request.",
    429: "You exceeded a limit. Try again after the time in `Retry-After`.",
    500: "An unexpected error occurred. The server's log has the cause under this request ID.",
    501: "This server generates audio on other machines and cannot stream it. Use /generate or /generate-async.",
}
CODES = {400: "invalid_request", 404: "not_found", 413: "payload_too_large", 416: "range_not_satisfiable"}

logger = logging.getLogger(__name__)


def init_app(app: Flask) -> None:
    app.register_error_handler(AudioCraftError, _handle_own_error)
    app.register_error_handler(HTTPException, _handle_http_error)
    app.register_error_handler(Exception, _handle_unexpected_error)


def error_response(status: int, code: str, message: str, **details: Any) -> Response:
    """Return an error response; `details` are the optional fields of `ErrorResponse`."""
    if dialect := dialect_of(current_app, request.endpoint):
        own_body, status = dialect.error(status, code, message, details)
        response = jsonify(own_body)
        response.status_code = status
        return response
    operation = operation_of(current_app, request.endpoint)
    schema = operation.error_schemas.get(status, ErrorResponse) if operation else ErrorResponse
    body = schema(error=message, code=code, request_id=request_id(), **details)
    response = jsonify(body.model_dump(exclude_none=True))
    response.status_code = status
    return response


def _handle_own_error(error: AudioCraftError) -> Response:
    if error.status >= 500 and not isinstance(error, Unavailable):
        logger.error("%s: %s", error.code, error.message, exc_info=error.__cause__)
    count_error(error.code, error)
    response = error_response(error.status, error.code, error.message, **details_of(error))
    if isinstance(error, (Unavailable, LimitExceeded)):
        response.headers["Retry-After"] = str(whole_seconds(error.retry_after_seconds))
    if isinstance(error, Unauthorized):
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def details_of(error: AudioCraftError) -> dict[str, Any]:
    """Return the fields of an error response beyond its sentence, its code and the request ID."""
    if isinstance(error, InvalidRequest):
        return {"errors": error.errors or None}
    if isinstance(error, PromptRefused):
        return {"category": error.category or None, "suggestion": error.suggestion}
    return {}


def whole_seconds(seconds: float) -> int:
    """Return a time as `Retry-After` needs it: whole seconds, at least 1."""
    return max(1, math.ceil(seconds))


def _handle_http_error(error: HTTPException) -> Response | HTTPException:
    """Render what Flask and Werkzeug raise, with its own headers (Allow, Content-Range)."""
    status = error.code or 500
    if status < 400:
        return error  # a redirect
    code = CODES.get(status) or re.sub(r"\W+", "_", error.name.lower())
    count_error(code)
    response = error_response(status, code, SENTENCES.get(status, f"{error.name}."))
    for name, value in error.get_headers():
        if name not in ("Content-Type", "Content-Length"):
            response.headers[name] = value
    return response


def _handle_unexpected_error(error: Exception) -> Response:
    logger.error("Unexpected error.", exc_info=error)
    count_error(AudioCraftError.code)
    return error_response(500, AudioCraftError.code, SENTENCES[500])
