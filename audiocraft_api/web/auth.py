"""Authentication: identifies the caller before anything else happens, and enforces each route's `Access`."""

from __future__ import annotations

from typing import cast

from flask import Flask, Request, current_app, g, request

from audiocraft_api.access.caller import UNAUTHENTICATED, Caller
from audiocraft_api.access.limits import network_of
from audiocraft_api.core.errors import Forbidden, InvalidRequest, ShuttingDown, StorageUnavailable, Unauthorized
from audiocraft_api.web.operations import Access, dialect_of
from audiocraft_api.web.services import services

# Browsers do not let a page set headers on a WebSocket. Such a page offers its key as a second subprotocol, which the
# server never selects.
WEBSOCKET_PROTOCOL = "audiocraft-api"
WEBSOCKET_KEY_PREFIX = "audiocraft-api-key."


def init_app(app: Flask) -> None:
    """Authenticate every request."""
    app.before_request(_authenticate)


def caller() -> Caller:
    """Return the caller of the current request."""
    return cast(Caller, g.caller)


def client_address() -> str:
    """Return the address, or IPv6 network, that the current request is counted for."""
    return network_of(request.remote_addr or "")


def access_of(app: Flask, endpoint: str) -> Access | None:
    """Return the declared access of a route; None when the route declares none."""
    return getattr(app.view_functions[endpoint], "access", None)


def needs_key(access: Access, audio_requires_key: bool) -> bool:
    """Return whether a route needs a key on a server where keys are configured."""
    return access is not Access.OPEN and (access is not Access.LINK or audio_requires_key)


def _authenticate() -> None:
    g.caller = UNAUTHENTICATED
    rule = request.url_rule
    if rule is None:
        return  # no such route, or not with this method
    if request.method == "OPTIONS" and getattr(rule, "provide_automatic_options", False):
        return  # CORS preflight: browsers send it without credentials
    access = access_of(current_app, rule.endpoint)
    if access is None:
        raise Forbidden("This route does not declare an access policy.")
    if not needs_key(access, services().config.access.audio_requires_key):
        return
    credential = _credential(request)
    try:
        g.caller = services().access.caller_of(credential)
    except Unauthorized:
        services().limits.count_failed_auth(client_address())
        raise
    except StorageUnavailable as error:
        if services().draining.is_set():  # the key store is already closed
            raise ShuttingDown from error
        raise
    scope = "read" if access is Access.LINK else access.value
    if scope not in g.caller.scopes:
        raise Forbidden(f"Your API key does not have the required scope: {scope}. Use a key that has it.")


def _credential(request: Request) -> str | None:
    """Return the one credential of a request. Raises InvalidRequest when there are several (RFC 6750, 2)."""
    found = []
    if key := request.headers.get("X-API-Key"):
        found += key.split(",")  # servers join repeated headers with commas
    dialect = dialect_of(current_app, request.endpoint)
    if dialect and dialect.key_header and (key := request.headers.get(dialect.key_header)):
        found += key.split(",")
    if dialect and dialect.key_query and (key := request.args.get(dialect.key_query)):
        found.append(key)
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        found += token.split(",")
    if request.headers.get("Upgrade", "").lower() == "websocket":
        offered = [name.strip() for name in request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
        found += [name.removeprefix(WEBSOCKET_KEY_PREFIX) for name in offered if name.startswith(WEBSOCKET_KEY_PREFIX)]
    if len(found) > 1:
        raise InvalidRequest("The request contains more than one credential. Send exactly one API key or token.")
    return found[0].strip(" \t") if found else None
