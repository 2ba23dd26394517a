"""Authentication: every route declares its access, credentials are checked first, and invalid credentials get 401."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask
from flask.testing import FlaskClient
from openapi_spec_validator import validate
from simple_websocket import Client

from audiocraft_api.access.authenticator import Authenticator
from audiocraft_api.access.create import create_key_store
from audiocraft_api.access.key_store import SqliteKeyStore
from audiocraft_api.config import Config, ConfigError, load_config
from audiocraft_api.core.errors import StorageUnavailable
from audiocraft_api.web.auth import access_of
from audiocraft_api.web.operations import Access
from audiocraft_api.web.services import services_of
from support.http import assert_error, fake_app, generate
from support.keys import ENVIRONMENT_KEY, OTHER_KEY, create_key, revoke_key, with_key
from support.served import Server, paused, serve, wait_until

SENTENCE = "Invalid or missing API key"
HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    "Sec-WebSocket-Version": "13",
}
UNKNOWN_KEY = "acg_unknown0_" + "A" * 43


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    """An app that requires the key of its environment."""
    return fake_app(tmp_path, keys=ENVIRONMENT_KEY)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def routes(app: Flask) -> Iterator[tuple[str, str, Access]]:
    """Yield every method and path of an app with its access."""
    for rule in app.url_map.iter_rules():
        access = access_of(app, rule.endpoint)
        assert access is not None, f"{rule.endpoint} does not declare its access"
        path = re.sub(r"<any\((\w+).*?>", r"\1", rule.rule)
        path = re.sub(r"<.*?>", "x", path)
        for method in rule.methods or set():
            yield method, path, access


class TestEveryRoute:
    def test_every_route_declares_its_access(self, app: Flask) -> None:
        declared = {access for _, _, access in routes(app)}
        assert {Access.OPEN, Access.LINK, Access.READ, Access.GENERATE} <= declared

    def test_a_route_without_declared_access_is_closed_to_every_caller(self, app: Flask) -> None:
        app.add_url_rule("/forgotten", "forgotten", lambda: "secret")
        with pytest.raises(AssertionError, match="forgotten does not declare"):
            list(routes(app))
        client = app.test_client()
        assert_error(client.get("/forgotten", headers=with_key(ENVIRONMENT_KEY)), 403, "forbidden")
        assert_error(client.get("/forgotten"), 403, "forbidden")

    def test_routes_that_are_not_open_get_401_without_a_key_and_with_a_wrong_key(self, app: Flask) -> None:
        client = app.test_client()
        num_requests = 0
        for method, path, access in routes(app):
            if access is Access.OPEN or method == "OPTIONS":
                continue
            for headers in ({}, with_key(OTHER_KEY), with_key(UNKNOWN_KEY)):
                response = client.open(path, method=method, headers=headers | (HANDSHAKE if "/ws/" in path else {}))
                assert response.status_code == 401, (method, path)
                assert response.headers["WWW-Authenticate"] == "Bearer"
                details = ["status"] if re.fullmatch("/tasks/[^/]+", path) and method == "GET" else []
                endpoint, _ = app.url_map.bind("").match(path, method, websocket="/ws/" in path)
                if endpoint.startswith("compat_"):  # whose errors have another shape
                    assert method == "HEAD" or SENTENCE in response.text
                elif method != "HEAD":
                    assert assert_error(response, 401, "unauthorized", details=details)["error"] == SENTENCE
                num_requests += 1
        assert num_requests > 30

    def test_open_routes_need_no_key_and_ignore_invalid_ones(self, client: FlaskClient) -> None:
        for path in ("/health", "/ready", "/", "/docs", "/openapi.json", "/docs/static/docs.js"):
            for headers in ({}, with_key("wrong"), with_key("a,b"), {"Authorization": "Bearer \xff"}):
                with client.get(path, headers=headers) as response:
                    assert response.status_code == 200, path

    def test_a_valid_key_can_call_every_route_of_its_scopes(self, app: Flask) -> None:
        client = app.test_client()
        for method, path, access in routes(app):
            if "/ws/" not in path and method != "OPTIONS":
                with client.open(path, method=method, headers=with_key(ENVIRONMENT_KEY)) as response:
                    assert (response.status_code == 403) == (access is Access.ADMIN), (method, path)
                    assert response.status_code not in (401, 500)

    def test_unknown_paths_are_404_and_the_allowed_methods_are_listed(self, client: FlaskClient) -> None:
        assert_error(client.get("/nothing"), 404, "not_found")
        assert set(client.get("/generate").headers["Allow"].split(", ")) == {"OPTIONS", "POST"}

    def test_a_browser_preflight_needs_no_key_and_allows_the_key_headers(self, client: FlaskClient) -> None:
        preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
        preflight["Access-Control-Request-Headers"] = "x-api-key, authorization, content-type"
        response = client.options("/generate", headers=preflight)
        assert response.status_code == 200
        allowed = {name.strip() for name in response.headers["Access-Control-Allow-Headers"].lower().split(",")}
        assert {"x-api-key", "authorization", "content-type"} <= allowed
        refused = client.post("/generate", headers={"Origin": "https://a.example"})
        assert refused.status_code == 401
        assert refused.headers["Access-Control-Allow-Origin"] == "*"


class TestCredentials:
    def test_a_key_is_accepted_in_either_header(self, client: FlaskClient) -> None:
        for headers in (
            with_key(ENVIRONMENT_KEY),
            with_key(f" {ENVIRONMENT_KEY} "),
            {"Authorization": f"Bearer {ENVIRONMENT_KEY}"},
            {"Authorization": f"bearer  {ENVIRONMENT_KEY}"},
            # Basic authentication belongs to a proxy and is ignored.
            {"Authorization": "Basic dXNlcjpwYXNzd29yZA==", **with_key(ENVIRONMENT_KEY)},
        ):
            assert client.get("/models", headers=headers).status_code == 200, headers

    def test_several_keys_are_refused_even_if_they_are_equal(self, client: FlaskClient) -> None:
        key = ENVIRONMENT_KEY
        for headers in (
            {"X-API-Key": key, "Authorization": f"Bearer {key}"},
            [("X-API-Key", key), ("X-API-Key", key)],
            {"X-API-Key": f"{key}, {OTHER_KEY}"},
            {"Authorization": f"Bearer {key}, Bearer {OTHER_KEY}"},
        ):
            assert_error(client.get("/models", headers=headers), 400, "invalid_request")

    @pytest.mark.parametrize(
        "given",
        ["", " ", "é\xff", "\x00", "a b", "x" * 1_000_000, "a.b.c", "..", "acg__", ENVIRONMENT_KEY[:-1],
         ENVIRONMENT_KEY.upper()],
    )  # fmt: skip
    def test_a_malformed_key_is_401(self, client: FlaskClient, given: str) -> None:
        for headers in (with_key(given), {"Authorization": f"Bearer {given}"}, {"Authorization": given}):
            assert_error(client.get("/models", headers=headers), 401, "unauthorized")

    def test_keys_in_urls_are_ignored(self, client: FlaskClient) -> None:
        for name in ("key", "api_key", "X-API-Key", "access_token"):
            assert client.get(f"/models?{name}={ENVIRONMENT_KEY}").status_code == 401

    def test_a_real_server_refuses_before_the_body_arrives_and_refuses_repeated_or_too_long_headers(
        self, tmp_path: Path
    ) -> None:
        with serve(tmp_path, "support.served:app", keys=ENVIRONMENT_KEY) as server:
            form = "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 1000000\r\n\r\n"
            key = f"X-API-Key: {ENVIRONMENT_KEY}\r\n"
            for head, status in (
                ("POST /generate-with-melody HTTP/1.1\r\nHost: a\r\n" + form, 401),  # no body follows
                (f"GET /models HTTP/1.1\r\nHost: a\r\n{key}{key}\r\n", 400),
                (f"GET /models HTTP/1.1\r\nHost: a\r\n{key}\r\n", 200),
                (f"GET /models HTTP/1.1\r\nHost: a\r\nX-API-Key: {'x' * 2**20}\r\n\r\n", 431),
            ):
                with server.connect() as connection:
                    with suppress(ConnectionError):  # the server closes it before the whole megabyte is sent
                        connection.sendall(head.encode())
                    status_line = connection.makefile("rb").readline()
                    assert int(status_line.split()[1]) == status
            assert ENVIRONMENT_KEY not in server.log


class TestScopes:
    def test_a_key_without_the_scope_is_403(self, tmp_path: Path) -> None:
        app = fake_app(tmp_path)
        keys = {scope: with_key(create_key(app, scope)) for scope in ("read", "generate", "admin")}
        client = app.test_client()
        assert client.get("/models", headers=keys["read"]).status_code == 200
        body = assert_error(client.post("/generate", json={"prompt": "a"}, headers=keys["read"]), 403, "forbidden")
        assert "generate" in body["error"]
        assert client.post("/generate", json={"prompt": "a"}, headers=keys["generate"]).status_code == 200
        for path in ("/models", "/tasks", "/audio/x"):
            assert_error(client.get(path, headers=keys["generate"]), 403, "forbidden")
            assert_error(client.get(path, headers=keys["admin"]), 403, "forbidden")


class TestStoredKeys:
    def test_a_created_key_works_until_it_expires(self, tmp_path: Path) -> None:
        app = fake_app(tmp_path)
        good, expired = create_key(app, expires_in_seconds=1000), create_key(app, expires_in_seconds=-1)
        client = app.test_client()
        assert client.get("/models", headers=with_key(good)).status_code == 200
        assert_error(client.get("/models", headers=with_key(expired)), 401, "unauthorized")

    def test_a_key_stops_working_when_it_expires(self, tmp_path: Path) -> None:
        app = fake_app(tmp_path)
        key, now = create_key(app, expires_in_seconds=1000), time.time()
        times = [now]
        services = services_of(app)
        authenticator = Authenticator(create_key_store(services.state), services.config, clock=lambda: times[0])
        assert authenticator.caller_of(key).owner == key.split("_")[1]
        times[0] = now + 1001
        with pytest.raises(Exception, match=SENTENCE):
            authenticator.caller_of(key)

    @pytest.mark.timing
    def test_the_first_key_and_a_revocation_take_effect_in_a_running_service_within_a_second(
        self, tmp_path: Path
    ) -> None:
        app = fake_app(tmp_path)
        client = app.test_client()
        assert client.get("/models").status_code == 200
        assert client.get("/models", headers=with_key("anything")).status_code == 200
        key = create_key(app)
        wait_until(lambda: client.get("/models").status_code == 401, 1.0)
        assert client.get("/models", headers=with_key(key)).status_code == 200
        revoke_key(app, key)
        wait_until(lambda: client.get("/models", headers=with_key(key)).status_code == 401, 1.0)
        assert client.get("/models").status_code == 401  # revoking the last key does not open the service
        assert fake_app(tmp_path).test_client().get("/models").status_code == 401

    @pytest.mark.timing
    def test_checking_a_key_is_fast(self, tmp_path: Path) -> None:
        app = fake_app(tmp_path, keys=",".join(f"{index:040x}" for index in range(2**60, 2**60 + 5)))
        for _ in range(100):
            create_key(app)
        key, caller_of = create_key(app), services_of(app).access.caller_of
        caller_of(key)
        fastest = min(_seconds_of(lambda: caller_of(key)) for _ in range(200))
        assert fastest < 2e-3  # measured: under 100 µs

    def test_while_the_store_is_unreachable_its_keys_get_503_and_environment_keys_work(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        app = fake_app(tmp_path, keys=ENVIRONMENT_KEY)
        key, client = create_key(app), app.test_client()

        def fail(_store: object) -> int:
            raise StorageUnavailable("The state store cannot be reached; try again later.")

        monkeypatch.setattr(SqliteKeyStore, "version", fail)
        response = client.get("/models", headers=with_key(key))
        assert_error(response, 503, "storage_unavailable")
        assert int(response.headers["Retry-After"]) > 0
        assert client.get("/models", headers=with_key(ENVIRONMENT_KEY)).status_code == 200
        assert client.get("/models", headers=with_key("wrong")).status_code == 401
        assert client.get("/health").status_code == 200

    def test_a_damaged_store_does_not_disable_authentication(self, tmp_path: Path) -> None:
        (tmp_path / "state.sqlite3").write_bytes(b"no database" * 1000)
        client = fake_app(tmp_path).test_client()
        assert_error(client.get("/models"), 503, "storage_unavailable")
        assert client.get("/openapi.json").json["paths"]["/models"]["get"]["security"]
        assert client.get("/health").status_code == 200

    def test_a_key_can_be_required_before_any_key_exists(self, tmp_path: Path) -> None:
        assert_error(fake_app(tmp_path, require_key=True).test_client().get("/models"), 401, "unauthorized")


class TestEnvironmentKeys:
    def test_environment_keys_may_have_names_and_scopes(self, tmp_path: Path) -> None:
        key, plain = "acg_abcd1234_" + "Ab-_" * 10 + "abc", "f" * 64
        client = fake_app(tmp_path, keys=f"studio:{key}, ops:read+admin:{plain} ,{ENVIRONMENT_KEY}").test_client()
        for given, status in ((key, 200), (ENVIRONMENT_KEY, 200), (plain, 403)):
            assert generate(client, prompt="a").status_code == 401
            assert client.get("/models", headers=with_key(given)).status_code == 200
            response = client.post("/generate", json={"prompt": "a"}, headers=with_key(given))
            assert response.status_code == status

    @pytest.mark.parametrize(
        "wrong",
        ["short", ",", " ", "a b" * 20, "n:write:" + "k" * 40, "n:" + "k" * 31, "acg_abcd1234_" + "x" * 42, "k" * 129,
         "k" * 40 + ",a:" + "k" * 40],
    )  # fmt: skip
    def test_an_invalid_key_stops_the_start_with_the_variable_named_and_the_value_hidden(self, wrong: str) -> None:
        with pytest.raises(ConfigError) as refusal:
            load_config({"AUDIOCRAFT_API_KEYS": wrong})
        assert "AUDIOCRAFT_API_KEYS=(hidden) is not valid" in str(refusal.value)
        assert len(wrong) < 2 or wrong not in str(refusal.value)

    def test_environment_keys_are_never_printed(self) -> None:
        assert ENVIRONMENT_KEY not in repr(load_config({"AUDIOCRAFT_API_KEYS": ENVIRONMENT_KEY}))


class TestOpenServiceWarning:
    @pytest.mark.parametrize(
        ("settings", "warns"),
        [
            ({"bind": "0.0.0.0:5000"}, True),
            ({"bind": "[::]:5000"}, True),
            ({"bind": "music.example:5000"}, True),
            ({"bind": "127.0.0.1:5000"}, False),
            ({"bind": "localhost:5000"}, False),
            ({"bind": "[::1]:5000"}, False),
            ({"bind": "unix:/run/audio.sock"}, False),
            ({"keys": ENVIRONMENT_KEY}, False),
            ({"require_key": True}, False),
        ],
    )
    def test_an_open_service_warns_unless_only_this_machine_can_reach_it(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, Any], warns: bool
    ) -> None:
        app = fake_app(tmp_path, **settings)
        services_of(app).start()
        services_of(app).close()
        assert ("No API key is configured" in capsys.readouterr().err) == warns

    def test_a_stored_key_prevents_the_warning(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        app = fake_app(tmp_path)
        create_key(app)
        services_of(app).access.start()
        assert "No API key" not in capsys.readouterr().err


class TestLogs:
    @pytest.mark.parametrize("log_format", ["text", "json"])
    def test_log_lines_contain_the_id_of_the_key_and_never_the_key(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], log_format: str
    ) -> None:
        app = fake_app(tmp_path, log_format=log_format)
        key = create_key(app)
        client, key_id = app.test_client(), key.split("_")[1]
        for headers in (with_key(key), {"Authorization": f"Bearer {key}"}):
            assert client.get("/models", headers=headers).status_code == 200
        client.get("/models", headers=with_key(key[:-1]))
        client.get("/health", headers=with_key(key))
        lines = capsys.readouterr().err.splitlines()
        assert not [line for line in lines if key[13:-1] in line]
        if log_format == "json":
            assert [json.loads(line).get("key_id") for line in lines] == [key_id, key_id, None, None]
        else:
            assert [line.endswith(f"ms by {key_id}") for line in lines] == [True, True, False, False]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(directory: Path) -> Iterator[Server]:
    with serve(directory, "support.streamed:app", keys=ENVIRONMENT_KEY) as running:
        yield running


@pytest.fixture
def _generations_paused(directory: Path) -> Iterator[None]:
    """Keep generations from ending: a closed connection would make the client discard unread messages."""
    with paused(directory / "hold"):
        yield


class TestWebSocket:
    @pytest.mark.usefixtures("_generations_paused")
    def test_a_page_sends_its_key_as_a_subprotocol_that_is_not_echoed(self, server: Server) -> None:
        offered = ["audiocraft-api", f"audiocraft-api-key.{ENVIRONMENT_KEY}"]
        ws = Client.connect(f"ws://127.0.0.1:{server.port}/ws/generate", subprotocols=offered)
        assert ws.subprotocol == "audiocraft-api"
        ws.send(json.dumps({"prompt": "hold after 0", "duration": 1}))
        assert json.loads(ws.receive(timeout=10))["type"] == "accepted"
        ws.close()
        assert ENVIRONMENT_KEY not in server.log

    @pytest.mark.usefixtures("_generations_paused")
    def test_a_key_is_accepted_in_a_header(self, server: Server) -> None:
        ws = Client.connect(f"ws://127.0.0.1:{server.port}/ws/generate", headers=with_key(ENVIRONMENT_KEY))
        ws.send(json.dumps({"prompt": "hold after 0", "duration": 1}))
        assert json.loads(ws.receive(timeout=10))["type"] == "accepted"
        ws.close()

    def test_clients_without_a_valid_key_get_no_websocket(self, server: Server) -> None:
        for protocols in ("", "audiocraft-api", f"audiocraft-api, audiocraft-api-key.{OTHER_KEY}"):
            headers = HANDSHAKE | ({"Sec-WebSocket-Protocol": protocols} if protocols else {})
            response = server.get("/ws/generate", headers=headers)
            assert (response.status_code, response.json()["error"]) == (401, SENTENCE)
        key = f"audiocraft-api-key.{ENVIRONMENT_KEY}"
        twice = server.get("/ws/generate", headers=HANDSHAKE | {"Sec-WebSocket-Protocol": f"{key}, {key}"})
        assert twice.status_code == 400

    def test_a_key_in_a_subprotocol_is_accepted_only_for_websockets(self, server: Server) -> None:
        headers = {"Sec-WebSocket-Protocol": f"audiocraft-api-key.{ENVIRONMENT_KEY}"}
        assert requests.get(server.url + "/models", headers=headers, timeout=10).status_code == 401


class TestOpenApi:
    @pytest.mark.parametrize("audio_requires_key", [True, False])
    def test_the_document_says_which_routes_need_a_key(self, tmp_path: Path, audio_requires_key: bool) -> None:
        app = fake_app(tmp_path, keys=ENVIRONMENT_KEY, audio_requires_key=audio_requires_key)
        document = app.test_client().get("/openapi.json").json
        validate(document)
        assert set(document["components"]["securitySchemes"]) == {"ApiKey", "Bearer"}
        for path, item in document["paths"].items():
            for method, found in item.items():
                needs_key = path not in ("/health", "/ready") and (audio_requires_key or not path.startswith("/audio"))
                assert found["security"] == ([{"ApiKey": []}, {"Bearer": []}] if needs_key else []), (method, path)
                assert not needs_key or {"401", "403"} <= set(found["responses"])

    def test_the_document_of_an_open_service_requires_no_key(self, tmp_path: Path) -> None:
        document = fake_app(tmp_path).test_client().get("/openapi.json").json
        assert not [found for item in document["paths"].values() for found in item.values() if found["security"]]


def _seconds_of(call: Any) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def test_by_default_the_settings_require_no_key() -> None:
    config = Config()
    assert (config.access.keys.get_secret_value(), config.access.require_key, config.access.jwt_issuer) == (
        "",
        False,
        "",
    )
