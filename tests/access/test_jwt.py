"""Signed tokens in place of keys: only tokens that the issuer has signed for this service are accepted.

The issuer is a real HTTP server that can rotate its keys, fail, stall, respond slowly and respond with invalid content.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flask.testing import FlaskClient

from audiocraft_api.access.jwks import KeySet
from audiocraft_api.config import ConfigError, load_config
from audiocraft_api.config.access import AccessSettings
from audiocraft_api.storage.base import OWNER
from audiocraft_api.web.services import services_of
from support.http import assert_error, fake_app
from support.issuer import AUDIENCE, Issuer, run_issuer
from support.served import wait_until


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with run_issuer() as running:
        running.add("first")
        yield running


def client_of(directory: Path, issuer: Issuer, **settings: Any) -> FlaskClient:
    tokens = {"jwt_issuer": issuer.url, "jwt_audience": AUDIENCE, "jwt_jwks_url": issuer.jwks_url}
    tokens |= {"jwt_jwks_timeout_seconds": 10.0, "jwt_jwks_refetch_seconds": 0.1, "jwt_leeway_seconds": 5}
    return fake_app(directory, **tokens | settings).test_client()


@pytest.fixture
def client(tmp_path: Path, issuer: Issuer) -> FlaskClient:
    return client_of(tmp_path, issuer)


def status(client: FlaskClient, token: str, path: str = "/models") -> int:
    return client.get(path, headers={"Authorization": f"Bearer {token}"}).status_code


def encoded(part: Any) -> str:
    text = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


class TestAcceptedTokens:
    @pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256", "EdDSA"])
    def test_every_allowed_algorithm_is_accepted(self, tmp_path: Path, issuer: Issuer, algorithm: str) -> None:
        issuer.add("other", algorithm)
        client = client_of(tmp_path, issuer, jwt_algorithms=f"RS256,{algorithm}")
        assert status(client, issuer.token("other", algorithm)) == 200
        assert status(client, issuer.token("first")) == 200

    def test_a_key_without_algorithm_and_use_verifies_all_algorithms_of_its_type(
        self, tmp_path: Path, issuer: Issuer
    ) -> None:
        issuer.published = [
            {name: value for name, value in entry.items() if name not in ("alg", "use")} for entry in issuer.published
        ]
        client = client_of(tmp_path, issuer, jwt_algorithms="RS256,RS512,ES256")
        assert status(client, issuer.token("first", "RS512")) == 200

    def test_several_audiences_and_small_clock_differences_are_accepted(
        self, client: FlaskClient, issuer: Issuer
    ) -> None:
        now = time.time()
        assert status(client, issuer.token("first", aud=["https://other.example", AUDIENCE])) == 200
        assert status(client, issuer.token("first", exp=now - 2)) == 200
        assert status(client, issuer.token("first", nbf=now + 2, iat=now + 2)) == 200

    def test_tokens_are_accepted_in_the_api_key_header(self, client: FlaskClient, issuer: Issuer) -> None:
        assert client.get("/models", headers={"X-API-Key": issuer.token("first")}).status_code == 200

    def test_keys_still_work_when_tokens_are_accepted(self, tmp_path: Path, issuer: Issuer) -> None:
        client = client_of(tmp_path, issuer, keys="k" * 40)
        assert client.get("/models", headers={"X-API-Key": "k" * 40}).status_code == 200
        assert issuer.num_fetches == 0


class TestScopesAndOwners:
    @pytest.mark.parametrize(
        ("claims", "statuses"),
        [
            ({"scope": "read generate"}, (200, 200)),
            ({"scope": "read"}, (200, 403)),
            ({"scope": None, "scp": ["generate"]}, (403, 200)),
            ({"scope": None, "scp": "read"}, (200, 403)),
            ({"scope": "READ generate:all"}, (403, 403)),
            ({"scope": None}, (403, 403)),
            ({"scope": 7}, (403, 403)),
            ({"scope": [["read"]]}, (403, 403)),
        ],
    )
    def test_a_caller_has_the_scopes_of_its_token(
        self, client: FlaskClient, issuer: Issuer, claims: dict[str, Any], statuses: tuple[int, int]
    ) -> None:
        headers = {"Authorization": "Bearer " + issuer.token("first", **claims)}
        posted = client.post("/generate", json={"prompt": "a", "duration": 1}, headers=headers)
        assert (client.get("/models", headers=headers).status_code, posted.status_code) == statuses

    def test_only_the_same_subject_can_access_its_audio_with_any_of_its_tokens(
        self, client: FlaskClient, issuer: Issuer, tmp_path: Path
    ) -> None:
        def headers(subject: str) -> dict[str, str]:
            return {"Authorization": "Bearer " + issuer.token("first", sub=subject)}

        alice = client.post("/generate", json={"prompt": "a", "duration": 1}, headers=headers("alice")).json
        for subject, expected in (("alice", 200), ("mallory", 404), ("../alice", 404)):
            with client.get(alice["audio_url"], headers=headers(subject)) as response:
                assert response.status_code == expected
        (folder,) = [entry.name for entry in (tmp_path / "audio").iterdir() if entry.is_dir()]
        assert folder.startswith("jwt-")
        assert OWNER.fullmatch(folder)
        assert "alice" not in folder


class TestRefusedTokens:
    @pytest.mark.parametrize(
        "claims",
        [
            {"aud": "https://other.example"},
            {"aud": None},
            {"aud": []},
            {"iss": "https://evil.example"},
            {"iss": None},
            {"exp": 1},
            {"exp": None},
            {"exp": "soon"},
            {"exp": float("inf")},
            {"exp": 1_700_000_000},
            {"nbf": 4_000_000_000},
            {"iat": 4_000_000_000},
            {"sub": None},
            {"sub": 7},
            {"sub": "\ud800"},
        ],
        ids=str,
    )
    def test_invalid_claims_are_refused(self, client: FlaskClient, issuer: Issuer, claims: dict[str, Any]) -> None:
        assert status(client, issuer.token("first", **claims)) == 401

    def test_the_algorithm_none_is_refused(self, client: FlaskClient, issuer: Issuer) -> None:
        for name in ("none", "None", "NONE", ""):
            unsigned = f"{encoded({'alg': name, 'kid': 'first'})}.{encoded(issuer.claims())}."
            assert status(client, unsigned) == 401
            assert status(client, unsigned + issuer.token("first").rpartition(".")[2]) == 401

    def test_a_public_key_is_not_used_as_a_shared_secret(self, client: FlaskClient, issuer: Issuer) -> None:
        public = issuer.keys["first"].public_key()
        for form in (PublicFormat.SubjectPublicKeyInfo, PublicFormat.PKCS1):
            secret = public.public_bytes(Encoding.PEM, form)
            signed = f"{encoded({'alg': 'HS256', 'kid': 'first', 'typ': 'JWT'})}.{encoded(issuer.claims())}"
            mac = hmac.digest(secret, signed.encode(), hashlib.sha256)
            assert status(client, f"{signed}.{encoded(mac)}") == 401

    def test_a_shared_secret_in_the_key_set_is_ignored(self, tmp_path: Path, issuer: Issuer) -> None:
        issuer.published.append({"kty": "oct", "kid": "shared", "k": encoded(b"k" * 32), "alg": "HS256"})
        token = jwt.encode(issuer.claims(), b"k" * 32, algorithm="HS256", headers={"kid": "shared"})
        assert status(client_of(tmp_path, issuer), token) == 401
        with pytest.raises(ConfigError, match="AUDIOCRAFT_API_JWT_ALGORITHMS"):
            load_config({"AUDIOCRAFT_API_JWT_ALGORITHMS": "RS256,HS256"})

    def test_an_algorithm_that_is_not_allowed_or_does_not_fit_the_key_is_refused(
        self, tmp_path: Path, issuer: Issuer
    ) -> None:
        issuer.add("curve", "ES256")
        assert status(client_of(tmp_path, issuer), issuer.token("first", "RS512")) == 401
        client = client_of(tmp_path, issuer, jwt_algorithms="RS256,RS512,ES256")
        assert status(client, issuer.token("curve", "ES256")) == 200
        assert status(client, issuer.token("first", "RS512")) == 401  # the key set says that it is for RS256
        assert status(client, issuer.token("first", headers={"kid": "curve"})) == 401
        assert status(client, issuer.token("curve", "ES256", headers={"kid": "first"})) == 401

    def test_a_key_for_encryption_is_not_used(self, tmp_path: Path, issuer: Issuer) -> None:
        issuer.published[0]["use"] = "enc"
        issuer.add("other")
        assert status(client_of(tmp_path, issuer), issuer.token("first")) == 401

    def test_a_key_embedded_in_the_token_is_ignored(self, client: FlaskClient, issuer: Issuer) -> None:
        with run_issuer("attacker") as attacker:
            attacker.add("first")
            attacker.url = issuer.url
            headers = {"kid": "first", "jwk": attacker.published[0], "jku": attacker.jwks_url}
            assert status(client, attacker.token("first", headers=headers)) == 401
            assert attacker.num_fetches == 0

    def test_a_changed_payload_or_signature_is_refused(self, client: FlaskClient, issuer: Issuer) -> None:
        head, body, signature = issuer.token("first", scope="read").split(".")
        assert status(client, f"{head}.{encoded(issuer.claims(scope='admin'))}.{signature}") == 401
        assert status(client, f"{head}.{body}.{signature[:-8]}AAAAAAAA") == 401
        assert status(client, f"{head}.{body}.") == 401

    @pytest.mark.parametrize(
        "head",
        [
            b"",
            b"{}",
            b"[]",
            b"7",
            b"null",
            b"\xff",
            b"[" * 5000,
            b'{"alg":' + b"9" * 5000 + b"}",
            b'{"alg":["RS256"],"kid":"first"}',
            b'{"alg":{"a":1},"kid":"first"}',
            b'{"alg":"RS256"}',
            b'{"alg":"RS256","kid":7}',
            b'{"alg":"RS256","kid":{}}',
            b'{"alg":"RS256","kid":"first","b64":false}',
            b'{"alg":"RS256","kid":"first","crit":["b64"]}',
            b'{"alg":"RS256","kid":"../first\\u0000"}',
        ],
    )
    def test_hostile_headers_are_refused(self, client: FlaskClient, issuer: Issuer, head: bytes) -> None:
        assert status(client, f"{encoded(head)}.{encoded(issuer.claims())}.AAAA") == 401

    def test_unknown_critical_extensions_are_refused(self, client: FlaskClient, issuer: Issuer) -> None:
        assert status(client, issuer.token("first", headers={"kid": "first", "crit": ["exp2"], "exp2": 1})) == 401


class TestKeySet:
    def test_keys_are_fetched_once_for_many_requests(self, client: FlaskClient, issuer: Issuer) -> None:
        token = issuer.token("first")
        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(lambda _: status(client, token), range(40))) == {200}
        assert issuer.num_fetches == 1

    def test_keys_are_fetched_at_the_start_before_any_request(self, tmp_path: Path, issuer: Issuer) -> None:
        client = client_of(tmp_path, issuer)
        services_of(client.application).start()
        wait_until(lambda: issuer.num_fetches == 1)
        assert status(client, issuer.token("first")) == 200
        assert issuer.num_fetches == 1
        services_of(client.application).close()

    def test_a_new_key_is_found_and_a_withdrawn_key_dropped(self, tmp_path: Path, issuer: Issuer) -> None:
        client = client_of(tmp_path, issuer, jwt_jwks_lifetime_seconds=1)
        old = issuer.token("first")
        assert status(client, old) == 200
        issuer.add("second")
        issuer.withdraw("first")
        wait_until(lambda: status(client, issuer.token("second")) == 200)
        wait_until(lambda: status(client, old) == 401)

    def test_unknown_keys_do_not_cause_more_fetches(self, tmp_path: Path, issuer: Issuer) -> None:
        client = client_of(tmp_path, issuer, jwt_jwks_refetch_seconds=3600)
        assert status(client, issuer.token("first")) == 200
        for number in range(200):
            assert status(client, issuer.token("first", headers={"kid": f"unknown-{number}"})) == 401
        assert issuer.num_fetches == 1

    def test_known_keys_work_during_an_outage_for_a_bounded_time(self, tmp_path: Path, issuer: Issuer) -> None:
        client = client_of(tmp_path, issuer, jwt_jwks_lifetime_seconds=1, jwt_jwks_outage_seconds=2)
        token = issuer.token("first")
        assert status(client, token) == 200
        started, issuer.status = time.monotonic(), 500
        wait_until(lambda: status(client, token) == 503)
        assert time.monotonic() - started > 1.9
        assert issuer.num_fetches > 2
        issuer.status = 200
        wait_until(lambda: status(client, token) == 200)

    def test_keys_unused_for_days_are_fetched_again_before_they_are_used(self, issuer: Issuer) -> None:
        days_later = [0.0]
        tokens = {"jwt_issuer": issuer.url, "jwt_audience": AUDIENCE, "jwt_jwks_url": issuer.jwks_url}
        keys = KeySet(AccessSettings(**tokens), max_waiting=4, clock=lambda: time.monotonic() + days_later[0] * 86_400)
        assert keys.get("first", "RS256") is not None
        issuer.add("second")
        issuer.withdraw("first")
        days_later[0] = 3
        assert keys.get("first", "RS256") is None
        assert keys.get("second", "RS256") is not None

    @pytest.mark.timing
    def test_a_slow_fetch_does_not_delay_tokens_with_a_known_key(self, tmp_path: Path, issuer: Issuer) -> None:
        client = client_of(tmp_path, issuer, jwt_jwks_lifetime_seconds=1)
        token = issuer.token("first")
        assert status(client, token) == 200
        issuer.responds.clear()
        started, num_before = time.monotonic(), issuer.num_fetches

        def is_fetched_again() -> bool:
            sent = time.monotonic()
            assert status(client, token) == 200
            assert time.monotonic() - sent < 1.0
            return issuer.num_fetches > num_before

        wait_until(is_fetched_again)
        assert time.monotonic() - started < 9
        assert status(client, token) == 200

    @pytest.mark.timing
    @pytest.mark.parametrize("failure", ["hangs", "drips", "error", "redirect", "invalid json", "no keys", "too large"])
    def test_without_keys_tokens_get_503_within_the_timeout(self, tmp_path: Path, issuer: Issuer, failure: str) -> None:
        client = client_of(tmp_path, issuer, jwt_jwks_timeout_seconds=0.5, keys="k" * 40)
        if failure == "hangs":
            issuer.responds.clear()
        issuer.drips = failure == "drips"
        issuer.status = {"error": 500, "redirect": 302}.get(failure, 200)
        bodies = {"invalid json": b"<html>", "no keys": b'{"keys": {}}', "drips": b" " * 10**6}
        issuer.body = bodies.get(
            failure, json.dumps({"keys": [], "x": "x" * 2**18}).encode() if failure == "too large" else None
        )
        started = time.monotonic()
        headers = {"Authorization": "Bearer " + issuer.token("first")}
        refused = client.get("/models", headers=headers)
        assert time.monotonic() - started < 3
        assert_error(refused, 503, "unavailable")
        assert int(refused.headers["Retry-After"]) > 0
        assert client.get("/models", headers={"X-API-Key": "k" * 40}).status_code == 200

    def test_invalid_entries_do_not_affect_other_keys(self, tmp_path: Path, issuer: Issuer) -> None:
        broken = [
            7,
            None,
            {},
            {"kid": 7, "kty": "RSA"},
            {"kid": "a", "kty": "RSA"},
            {"kid": "b", "kty": "RSA", "n": "!", "e": 1},
        ]
        broken += [{"kid": "c", "kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}, {"kid": "d", "kty": "EC", "crv": 7}]
        broken += [
            {"kid": "e", "kty": "RSA", "n": 5, "e": 3},
            {"kid": "f", "kty": "EC", "crv": "P-256", "x": 5, "y": None},
        ]
        issuer.published = [*broken, *issuer.published]  # type: ignore[list-item]
        client = client_of(tmp_path, issuer)
        assert status(client, issuer.token("first")) == 200
        assert status(client, issuer.token("first", headers={"kid": "a"})) == 401


class TestSettings:
    @pytest.mark.parametrize("left_out", ["issuer", "audience", "jwks_url"])
    def test_token_settings_must_be_set_together(self, left_out: str) -> None:
        given = {"issuer": "https://i.example", "audience": "a", "jwks_url": "https://i.example/jwks"}
        environ = {f"AUDIOCRAFT_API_JWT_{name.upper()}": value for name, value in given.items() if name != left_out}
        with pytest.raises(ConfigError, match="must be set together"):
            load_config(environ)

    @pytest.mark.parametrize("url", ["https://user:password@i.example/jwks", "file:///etc/passwd", "https:///jwks"])
    def test_an_invalid_jwks_url_stops_the_start(self, url: str) -> None:
        environ = {"AUDIOCRAFT_API_JWT_ISSUER": "https://i.example", "AUDIOCRAFT_API_JWT_AUDIENCE": "a"}
        with pytest.raises(ConfigError, match="AUDIOCRAFT_API_JWT_JWKS_URL"):
            load_config(environ | {"AUDIOCRAFT_API_JWT_JWKS_URL": url})

    def test_a_jwks_url_with_an_invalid_port_stops_the_start(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="AUDIOCRAFT_API_JWT_JWKS_URL"):
            fake_app(tmp_path, jwt_issuer="i", jwt_audience="a", jwt_jwks_url="https://i.example:99999/jwks")
