"""API keys for tests: created directly in the store of an app, as the command line does."""

from __future__ import annotations

import time

from flask import Flask

from audiocraft_api.access.api_key import new_key
from audiocraft_api.access.caller import DEFAULT_SCOPES, CallerLimits, scopes_of
from audiocraft_api.access.create import create_key_store
from audiocraft_api.state.create import StateDatabase
from audiocraft_api.web.services import services_of

ENVIRONMENT_KEY = "k" * 40
OTHER_KEY = "o" * 40


def create_key(
    app: Flask, *scopes: str, expires_in_seconds: float | None = None, limits: CallerLimits | None = None
) -> str:
    """Create a key in the app's store and return it."""
    return store_key(services_of(app).state, *scopes, expires_in_seconds=expires_in_seconds, limits=limits)


def store_key(
    state: StateDatabase, *scopes: str, expires_in_seconds: float | None = None, limits: CallerLimits | None = None
) -> str:
    """Create a key in a database, which a server may be using, and return it."""
    now = time.time()
    expires = None if expires_in_seconds is None else now + expires_in_seconds
    granted = scopes_of(scopes) if scopes else DEFAULT_SCOPES
    key, record = new_key("a test", granted, limits or CallerLimits(), created=now, expires=expires)
    create_key_store(state).add(record)
    return key


def revoke_key(app: Flask, key: str) -> None:
    create_key_store(services_of(app).state).revoke(key.split("_")[1], time.time())


def with_key(key: str) -> dict[str, str]:
    """Return the request header with this key."""
    return {"X-API-Key": key}
