"""Calls the operator's moderation service for a prompt, within a bounded time. Knows no word list.

The request is `POST {"prompt": "…"}` with a bearer token. The response is 200 with `{"allowed": true}` or
`{"allowed": false, "category": "…", "suggestion": "…"}`; the last two are optional. Any other response is an error.
"""

from __future__ import annotations

import http.client
import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydantic import BaseModel, StrictBool, ValidationError

from audiocraft_api.config import Config, ConfigError, variable_name
from audiocraft_api.core.errors import ModerationUnavailable, PromptRefused
from audiocraft_api.net.outbound import ForbiddenTarget, connected, parse_target

CATEGORY = "moderation"  # if the service does not name one
MAX_RESPONSE_BYTES = 64 * 2**10
MAX_CATEGORY_CHARACTERS = 100
MAX_SUGGESTION_CHARACTERS = 500

logger = logging.getLogger(__name__)


class _InvalidResponse(Exception):
    """The response is not a verdict; the message says why, without quoting the response."""


class _Verdict(BaseModel):
    allowed: StrictBool
    category: Any = None  # of any type: a malformed category does not undo a refusal
    suggestion: Any = None


class Moderation:
    """Client of one moderation service. Thread-safe."""

    def __init__(self, config: Config) -> None:
        """Check the settings, without calling the service. Raises ConfigError."""
        try:
            self._target = parse_target(config.policy.moderation_url, allow_private=True)
        except ForbiddenTarget as error:
            raise ConfigError(f"{variable_name('moderation_url')} {error}") from None
        secret = config.policy.moderation_secret.get_secret_value()
        if not (secret.isascii() and secret.isprintable()):
            raise ConfigError(f"{variable_name('moderation_secret')} must be printable ASCII characters")
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if secret:
            self._headers["Authorization"] = f"Bearer {secret}"
        self._timeout_seconds = config.policy.moderation_timeout_seconds
        self._is_open = config.policy.moderation_failure == "open"
        # A thread pool, because no socket timeout bounds a name lookup. It also bounds the number of calls.
        self._calls = ThreadPoolExecutor(config.policy.moderation_calls, thread_name_prefix="moderation")
        # A service that hangs must not block every request thread.
        self._slots = threading.BoundedSemaphore(max(config.policy.moderation_calls, config.server.threads // 2))

    def require_allowed(self, prompt: str) -> None:
        """Raise PromptRefused for a prompt that the service refuses, ModerationUnavailable without a verdict."""
        if not self._slots.acquire(blocking=False):
            raise ModerationUnavailable("The server is checking too many prompts. Try again in a moment.", 1.0)
        try:
            verdict = self._verdict(prompt)
        finally:
            self._slots.release()
        if verdict is not None and not verdict.allowed:
            raise PromptRefused(
                "This server's moderation does not allow this prompt.",
                _text(verdict.category, MAX_CATEGORY_CHARACTERS) or CATEGORY,
                _text(verdict.suggestion, MAX_SUGGESTION_CHARACTERS),
                prompt=prompt,
            )

    def _verdict(self, prompt: str) -> _Verdict | None:
        """Return the verdict, or None if it did not arrive in time and the setting lets the prompt pass."""
        call = self._calls.submit(self._call_service, prompt, time.monotonic() + self._timeout_seconds)
        try:
            return call.result(self._timeout_seconds)
        except (OSError, http.client.HTTPException, UnicodeError, _InvalidResponse) as error:
            call.cancel()
            # Log only the type of other errors: their text may quote the response, which may quote the prompt.
            cause = str(error) if isinstance(error, _InvalidResponse) else type(error).__name__
            logger.warning("The moderation service returned no verdict: %s.", cause)
            if self._is_open:
                return None
            raise ModerationUnavailable("The server cannot check prompts at the moment. Try again later.") from None

    def _call_service(self, prompt: str, until: float) -> _Verdict:
        seconds = until - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        with connected(self._target, self._target.host, seconds) as client:
            client.request("POST", self._target.path, json.dumps({"prompt": prompt}).encode(), self._headers)
            with client.getresponse() as response:
                body = response.read(MAX_RESPONSE_BYTES + 1)
        if response.status != 200:
            raise _InvalidResponse(f"status {response.status}")
        if len(body) > MAX_RESPONSE_BYTES:
            raise _InvalidResponse(f"over {MAX_RESPONSE_BYTES} bytes")
        try:
            return _Verdict.model_validate_json(body)
        except ValidationError:
            raise _InvalidResponse('not a JSON object with "allowed"') from None


def _text(value: Any, max_characters: int) -> str | None:
    return value[:max_characters] if isinstance(value, str) and value.strip() else None
