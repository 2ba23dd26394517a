"""Asks the operator's own moderation service about a prompt, within a bounded time. Knows no list.

`POST {"prompt": "…"}` with a bearer token is answered with 200 and `{"allowed": true}`, or with `{"allowed": false,
"category": "…", "suggestion": "…"}`, the last two optional. Everything else is no answer.
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

CATEGORY = "moderation"  # where the service names none
MAX_ANSWER_BYTES = 64 * 2**10
MAX_CATEGORY_CHARACTERS = 100
MAX_SUGGESTION_CHARACTERS = 500

logger = logging.getLogger(__name__)


class _NoVerdict(Exception):
    """What came is no verdict; the message says why, without what came."""


class _Verdict(BaseModel):
    allowed: StrictBool
    category: Any = None  # a refusal is one, whatever it says of itself
    suggestion: Any = None


class Moderation:
    """One moderation service."""

    def __init__(self, config: Config) -> None:
        """Take the settings; nothing is called. Raises ConfigError."""
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
        # Threads bound what no time-out of a socket does: the look-up of a name, and how many calls there are.
        self._calls = ThreadPoolExecutor(config.policy.moderation_calls, thread_name_prefix="moderation")
        # A service that hangs must not hold all request threads.
        self._places = threading.BoundedSemaphore(max(config.policy.moderation_calls, config.server.threads // 2))

    def check(self, prompt: str) -> None:
        """Ask about a prompt. Raises PromptRefused, ModerationUnavailable."""
        if not self._places.acquire(blocking=False):
            raise ModerationUnavailable("Too many prompts are being checked; try again in a moment.", 1.0)
        try:
            verdict = self._verdict(prompt)
        finally:
            self._places.release()
        if verdict is not None and not verdict.allowed:
            raise PromptRefused(
                "The prompt is refused by this server's moderation.",
                _text(verdict.category, MAX_CATEGORY_CHARACTERS) or CATEGORY,
                _text(verdict.suggestion, MAX_SUGGESTION_CHARACTERS),
            )

    def _verdict(self, prompt: str) -> _Verdict | None:
        """Return the answer within the time; None where there is none and the prompt passes so."""
        call = self._calls.submit(self._ask, prompt, time.monotonic() + self._timeout_seconds)
        try:
            return call.result(self._timeout_seconds)
        except (OSError, http.client.HTTPException, UnicodeError, _NoVerdict) as error:
            call.cancel()
            # Of others their kind alone: the text of an error may quote the answer, and the answer the prompt.
            cause = str(error) if isinstance(error, _NoVerdict) else type(error).__name__
            logger.warning("The moderation service gave no answer: %s.", cause)
            if self._is_open:
                return None
            raise ModerationUnavailable("Prompts cannot be checked now; try again in a moment.") from None

    def _ask(self, prompt: str, until: float) -> _Verdict:
        seconds = until - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        with connected(self._target, self._target.host, seconds) as client:
            client.request("POST", self._target.path, json.dumps({"prompt": prompt}).encode(), self._headers)
            with client.getresponse() as response:
                body = response.read(MAX_ANSWER_BYTES + 1)
        if response.status != 200:
            raise _NoVerdict(f"its status was {response.status}")
        if len(body) > MAX_ANSWER_BYTES:
            raise _NoVerdict(f"it had over {MAX_ANSWER_BYTES} bytes")
        try:
            return _Verdict.model_validate_json(body)
        except ValidationError:
            raise _NoVerdict('it was no JSON object with "allowed"') from None


def _text(value: Any, max_characters: int) -> str | None:
    return value[:max_characters] if isinstance(value, str) and value.strip() else None
