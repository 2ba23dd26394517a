"""HTTP calls to URLs from settings and requests: checks the address, makes the call and signs it.

Clients choose the targets of webhooks, so a call must not reach what only this server can reach (SSRF). Only http and
https are allowed, and redirects and the environment's proxies are ignored. Clients learn nothing of a response but its
status. Every address that the host name resolves to must be public, and the connection goes to the address that was
checked, so that a name server cannot return another one in between (DNS rebinding). Every call has one deadline for
the whole call. Knows nothing of tasks.
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
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: contains an IPv4 address

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class ForbiddenTarget(Exception):
    """The target must not be called. The message says why and has no subject, such as "must be a URL"."""


@dataclass(frozen=True)
class Target:
    """A parsed URL."""

    scheme: str
    host: str
    port: int
    path: str  # including the query


def parse_target(url: str, *, allow_private: bool) -> Target:
    """Parse a URL without resolving its host name. Raises ForbiddenTarget."""
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
        raise ForbiddenTarget("must not contain a user name or a password")
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
    """Raise ForbiddenTarget for an address that is not public, or that embeds an IPv4 address that is not."""
    if allow_private:
        return
    if not address.is_global or address.is_multicast or any(not embedded.is_global for embedded in _embedded(address)):
        raise ForbiddenTarget("must not point to a private address")


def resolve(target: Target, *, allow_private: bool) -> str:
    """Resolve the host name, check every address, and return the first. Raises ForbiddenTarget, OSError."""
    found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    addresses = [str(sockaddr[0]) for *_, sockaddr in found]
    for address in addresses:
        check_address(ipaddress.ip_address(address), allow_private=allow_private)
    return addresses[0]


def post(target: Target, body: bytes, headers: dict[str, str], *, allow_private: bool, timeout_seconds: float) -> int:
    """Send a POST request and return the status of the response.

    Takes at most `timeout_seconds` after the name is resolved. Raises ForbiddenTarget, OSError (which includes
    timeouts and TLS errors), http.client.HTTPException.
    """
    address = resolve(target, allow_private=allow_private)
    with connected(target, address, timeout_seconds) as client:
        client.request("POST", target.path, body, headers)
        with client.getresponse() as response:
            return response.status


@contextmanager
def connected(target: Target, address: str, timeout_seconds: float) -> Iterator[http.client.HTTPConnection]:
    """Connect to the target's `address` (an IP address or its host name) and close the connection after the block.

    The block has `timeout_seconds` in total; after that, using the connection raises OSError or
    http.client.HTTPException. Connecting raises OSError.
    """
    connection = socket.create_connection((address, target.port), timeout_seconds)
    # A socket's own timeout restarts with every byte, so a server that sends one byte at a time would never hit it.
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
    """Return the signature headers of Standard Webhooks 1.0 (standardwebhooks.com)."""
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


def _embedded(address: Address) -> list[Address]:
    """Return the IPv4 addresses that an IPv6 address embeds."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    embedded = [address.ipv4_mapped, address.sixtofour, address.teredo[1] if address.teredo else None]
    if address in NAT64:
        embedded.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [found for found in embedded if found is not None]
