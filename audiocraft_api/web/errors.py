"""The one place where errors become answers: `{"error": sentence, "code", "request_id", "errors"?}`."""

from __future__ import annotations

import logging
import math
import re
from typing import Any

from flask import Flask, Response, jsonify
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
from audiocraft_api.web.schemas import ErrorResponse

SENTENCES = {
    400: "The request is malformed.",
    401: "Invalid or missing API key",
    403: "This is not allowed.",
    404: "There is nothing at this address; /docs lists the routes.",
    405: "This address does not take that method.",
    410: "The audio was made and is not kept any more.",
    411: "Send the body with a Content-Length header; chunked bodies are not taken.",
    413: "The request body is too large.",
    415: "The request body has the wrong content type.",
    416: "The requested range is not inside the file.",
    422: "The prompt is not allowed here, or the Idempotency-Key came before with another request.",
    429: "You are over your limit; try again after `Retry-After`.",
    500: "The server met an unexpected problem; its log has the cause under this request id.",
    501: "Audio is made on other machines and cannot be heard while it is made.",
}
CODES = {400: "invalid_request", 404: "not_found", 413: "payload_too_large", 416: "range_not_satisfiable"}

logger = logging.getLogger(__name__)


def init_app(app: Flask) -> None:
    app.register_error_handler(AudioCraftError, _answer_own)
    app.register_error_handler(HTTPException, _answer_http)
    app.register_error_handler(Exception, _answer_unexpected)


def error_response(status: int, code: str, message: str, **details: Any) -> Response:
    """Render an error answer; `details` are the fields of `ErrorResponse` that only some have."""
    answer = ErrorResponse(error=message, code=code, request_id=request_id(), **details)
    response = jsonify(answer.model_dump(exclude_none=True))
    response.status_code = status
    return response


def _answer_own(error: AudioCraftError) -> Response:
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
    """Return the fields of an error's answer beyond its sentence, its code and the request's id."""
    if isinstance(error, InvalidRequest):
        return {"errors": error.errors or None}
    if isinstance(error, PromptRefused):
        return {"category": error.category or None, "suggestion": error.suggestion}
    return {}


def whole_seconds(seconds: float) -> int:
    """Return what `Retry-After` says of a time."""
    return max(1, math.ceil(seconds))


def _answer_http(error: HTTPException) -> Response | HTTPException:
    """Answer what Flask and Werkzeug raise, with the headers that belong to it (Allow, Content-Range)."""
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


def _answer_unexpected(error: Exception) -> Response:
    logger.error("Unexpected error.", exc_info=error)
    count_error(AudioCraftError.code)
    return error_response(500, AudioCraftError.code, SENTENCES[500])
