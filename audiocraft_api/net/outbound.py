"""One webhook call: which addresses may be called, how the call is signed, and the call itself, within its time.

The target is a stranger's choice. So: http and https alone, no redirects, no proxies of the environment, nothing of
the answer but its status; every address that the name stands for must be public; and the connection goes to the very
address that was checked, so that a name server cannot say another one in between. Knows no task.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

MAX_URL_CHARACTERS = 2000
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: holds an IPv4 address

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class ForbiddenTarget(Exception):
    """The target is one that must not be called; the message says why."""


@dataclass(frozen=True)
class Target:
    """A webhook's parsed address."""

    scheme: str
    host: str
    port: int
    path: str  # with the query


def parse_target(url: str, *, allow_private: bool) -> Target:
    """Take an address apart, resolving no name. Raises ForbiddenTarget."""
    if len(url) > MAX_URL_CHARACTERS or not url.isascii() or not url.isprintable() or " " in url:
        raise ForbiddenTarget(f"must be a URL of at most {MAX_URL_CHARACTERS:,} printable ASCII characters")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ForbiddenTarget("must be a URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ForbiddenTarget("must be an http or https URL with a host")
    if parts.username is not None or parts.password is not None:
        raise ForbiddenTarget("must not hold a user name or a password")
    target = Target(
        parts.scheme,
        parts.hostname,
        (443 if parts.scheme == "https" else 80) if port is None else port,
        (parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
    )
    with suppress(ValueError):
        check_address(ipaddress.ip_address(target.host), allow_private=allow_private)
    return target


def check_address(address: Address, *, allow_private: bool) -> None:
    """Raise ForbiddenTarget for an address that is not public, or that hides one which is not."""
    if allow_private:
        return
    if not address.is_global or address.is_multicast or any(not inner.is_global for inner in _inner(address)):
        raise ForbiddenTarget("must not lead to a private address")


def resolve(target: Target, *, allow_private: bool) -> str:
    """Return an address of the target after checking them all. Raises ForbiddenTarget, OSError."""
    found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    addresses = [str(sockaddr[0]) for *_, sockaddr in found]
    for address in addresses:
        check_address(ipaddress.ip_address(address), allow_private=allow_private)
    return addresses[0]


def call(target: Target, body: bytes, headers: dict[str, str], *, allow_private: bool, timeout_seconds: float) -> int:
    """POST to the target and return the status of the answer.

    The whole takes at most `timeout_seconds` once the name is resolved. Raises ForbiddenTarget, OSError (which covers
    time-outs and TLS), http.client.HTTPException.
    """
    address = resolve(target, allow_private=allow_private)
    with connected(target, address, timeout_seconds) as client:
        client.request("POST", target.path, body, headers)
        with client.getresponse() as response:
            return response.status


@contextmanager
def connected(target: Target, address: str, timeout_seconds: float) -> Iterator[http.client.HTTPConnection]:
    """Connect to the target at an address of it, or at its host; then the block has `timeout_seconds` in all.

    Raises OSError; so, or with http.client.HTTPException, does what the block does when its time is over.
    """
    connection = socket.create_connection((address, target.port), timeout_seconds)
    # The socket's own time-out begins anew with every byte: a drip of them must end too.
    with connection.dup() as handle:
        alarm = threading.Timer(timeout_seconds, _shut, (handle,))
        alarm.daemon = True
        alarm.start()
        try:
            if target.scheme == "https":
                connection = ssl.create_default_context().wrap_socket(connection, server_hostname=target.host)
            with closing(http.client.HTTPConnection(target.host, target.port)) as client:
                client.default_port = 443 if target.scheme == "https" else 80
                client.sock = connection
                yield client
        finally:
            alarm.cancel()
            alarm.join()
            connection.close()


def signed_headers(key: bytes, message_id: str, body: bytes) -> dict[str, str]:
    """Return the headers of a call as Standard Webhooks 1.0 has them (standardwebhooks.com)."""
    timestamp = str(int(time.time()))
    signature = hmac.digest(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": "v1," + base64.b64encode(signature).decode(),
    }


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _inner(address: Address) -> list[Address]:
    """Return the IPv4 addresses that an IPv6 address stands for."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    inner = [address.ipv4_mapped, address.sixtofour, address.teredo[1] if address.teredo else None]
    if address in NAT64:
        inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [found for found in inner if found is not None]
