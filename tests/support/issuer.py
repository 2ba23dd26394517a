"""An issuer of signed tokens for tests: a real HTTP server that publishes a JWKS and can be made to fail."""

from __future__ import annotations

import functools
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

AUDIENCE = "https://music.example"


class Issuer:
    """Publishes its public keys at `jwks_url` and signs tokens."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.keys: dict[str, Any] = {}
        self.published: list[dict[str, Any]] = []
        self.num_fetches = 0
        self.status = 200
        self.body: bytes | None = None  # replaces the key set
        self.drips = False  # sends one byte at a time, forever
        self.responds = threading.Event()
        self.responds.set()
        self.url = self.jwks_url = ""

    def add(self, key_id: str, algorithm: str = "RS256") -> None:
        """Generate a key and publish it."""
        self.keys[key_id] = _private_key(self._name, key_id, algorithm[:2])
        to_jwk = jwt.get_algorithm_by_name(algorithm).to_jwk
        entry = to_jwk(self.keys[key_id].public_key(), as_dict=True)
        self.published.append(entry | {"kid": key_id, "use": "sig", "alg": algorithm})

    def withdraw(self, key_id: str) -> None:
        self.published = [entry for entry in self.published if entry["kid"] != key_id]

    def claims(self, **changed: Any) -> dict[str, Any]:
        """Return valid claims updated with `changed`; claims that are None are omitted."""
        now = int(time.time())
        claims = {"iss": self.url, "aud": AUDIENCE, "sub": "alice", "iat": now, "exp": now + 300}
        claims |= {"scope": "openid read generate"} | changed
        return {name: value for name, value in claims.items() if value is not None}

    def token(
        self, key_id: str, algorithm: str = "RS256", headers: dict[str, Any] | None = None, **changed: Any
    ) -> str:
        """Sign a token."""
        signed_headers = {"kid": key_id} if headers is None else headers
        return jwt.encode(self.claims(**changed), self.keys[key_id], algorithm=algorithm, headers=signed_headers)


@functools.cache  # generating RSA keys is slow
def _private_key(_issuer: str, _key_id: str, family: str) -> Any:
    if family == "ES":
        return ec.generate_private_key(ec.SECP256R1())
    if family == "Ed":
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@contextmanager
def run_issuer(name: str = "issuer") -> Iterator[Issuer]:
    """Run an issuer on a free port. Issuers with the same name have the same keys."""
    issuer = Issuer(name)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.num_fetches += 1
            issuer.responds.wait(20)
            body = json.dumps({"keys": issuer.published}).encode() if issuer.body is None else issuer.body
            try:
                self.send_response(issuer.status)
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                while issuer.drips:
                    self.wfile.write(b" ")
                    threading.Event().wait(0.05)
                self.wfile.write(body)
            except OSError:
                pass

        def log_message(self, *_arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        issuer.url = f"http://127.0.0.1:{server.server_port}"
        issuer.jwks_url = issuer.url + "/.well-known/jwks.json"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield issuer
        finally:
            issuer.drips = False
            issuer.responds.set()
            server.shutdown()
            thread.join()
