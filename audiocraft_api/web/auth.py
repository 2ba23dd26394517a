"""Who calls: looks at each request's credential before anything else, and holds each route to its own decision."""

from __future__ import annotations

from typing import cast

from flask import Flask, Request, current_app, g, request

from audiocraft_api.access.caller import UNAUTHENTICATED, Caller
from audiocraft_api.access.limits import network_of
from audiocraft_api.core.errors import Forbidden, InvalidRequest, ShuttingDown, StorageUnavailable, Unauthorized
from audiocraft_api.web.operations import Access
from audiocraft_api.web.services import services

# Browsers let no page send headers with a WebSocket; it offers the key as a protocol, which is never chosen.
WEBSOCKET_PROTOCOL = "audiocraft-api"
WEBSOCKET_KEY_PREFIX = "audiocraft-api-key."


def init_app(app: Flask) -> None:
    """Authenticate every request."""
    app.before_request(_authenticate)


def caller() -> Caller:
    """Return who calls, in the current request."""
    return cast(Caller, g.caller)


def access_of(app: Flask, endpoint: str) -> Access | None:
    """Return what a route has decided; None when it forgot to."""
    return getattr(app.view_functions[endpoint], "access", None)


def asks_for_key(access: Access, audio_requires_key: bool) -> bool:
    """Say whether a route asks for a key, where keys are configured."""
    return access is not Access.OPEN and (access is not Access.LINK or audio_requires_key)


def _authenticate() -> None:
    g.caller = UNAUTHENTICATED
    rule = request.url_rule
    if rule is None:
        return  # there is nothing at this address, or not by this method
    if request.method == "OPTIONS" and getattr(rule, "provide_automatic_options", False):
        return  # a browser asks what it may send, and sends no key with that
    access = access_of(current_app, rule.endpoint)
    if access is None:
        raise Forbidden("This route has not decided who may call it.")
    if not asks_for_key(access, services().config.access.audio_requires_key):
        return
    credential = _credential(request)
    try:
        g.caller = services().access.caller_of(credential)
    except Unauthorized:
        services().limits.count_failed_auth(network_of(request.remote_addr or ""))
        raise
    except StorageUnavailable as error:
        if services().draining.is_set():  # the store is closed
            raise ShuttingDown from error
        raise
    scope = "read" if access is Access.LINK else access.value
    if scope not in g.caller.scopes:
        raise Forbidden(f"Your key may not do this: it lacks the scope {scope}.")


def _credential(request: Request) -> str | None:
    """Return the one credential of a request. Raises InvalidRequest for several (RFC 6750, 2)."""
    found = []
    if key := request.headers.get("X-API-Key"):
        found += key.split(",")  # how servers join a header that comes twice
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        found += token.split(",")
    if request.headers.get("Upgrade", "").lower() == "websocket":
        offered = [name.strip() for name in request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
        found += [name.removeprefix(WEBSOCKET_KEY_PREFIX) for name in offered if name.startswith(WEBSOCKET_KEY_PREFIX)]
    if len(found) > 1:
        raise InvalidRequest("Send one API key or token, once.")
    return found[0].strip(" \t") if found else None
