"""A real browser uses the service: from a page of another origin, and the pages under /docs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext

from support.browser import open_browser, serve_files
from support.served import Server, serve

PAGE = """<!doctype html><meta charset="utf-8"><title>A page of another origin</title><audio></audio>"""
GENERATE_AND_PLAY = """
async ([service, format]) => {
  const response = await fetch(service + "/generate", {
    method: "POST",
    headers: {"Content-Type": "application/json"},
    body: JSON.stringify({prompt: "solo cello", duration: 1, output_format: format}),
  });
  const requestId = response.headers.get("X-Request-ID");
  const body = await response.json();
  const audio = document.querySelector("audio");
  audio.muted = true;
  audio.src = service + body.audio_url;
  await audio.play();
  await new Promise((resolve, reject) => {
    audio.onended = resolve;
    audio.onerror = () => reject(new Error(audio.error.message));
  });
  return {status: response.status, sameId: requestId === body.request_id, played: audio.currentTime};
}
"""
READ_AN_ERROR = """
async (service) => {
  const response = await fetch(service + "/generate", {
    method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify({prompt: ""}),
  });
  return [response.status, (await response.json()).error];
}
"""


USE_A_KEY = """
async ([service, key]) => {
  const headers = {"X-API-Key": key, "Content-Type": "application/json"};
  const body = JSON.stringify({prompt: "solo cello", duration: 1});
  const without = await fetch(
    service + "/generate", {method: "POST", headers: {"Content-Type": "application/json"}, body});
  const refusal = (await without.json()).error;
  const {audio_url} = await (await fetch(service + "/generate", {method: "POST", headers, body})).json();
  const bearer = await fetch(service + audio_url, {headers: {Authorization: "Bearer " + key}});
  const audio = document.querySelector("audio");
  audio.muted = true;
  audio.src = URL.createObjectURL(await bearer.blob());
  await audio.play();
  const open = (protocols) => new Promise((resolve) => {
    const socket = new WebSocket(service.replace("http", "ws") + "/ws/generate", protocols);
    socket.onopen = () => { resolve(socket.protocol); socket.close(); };
    socket.onerror = () => resolve("refused");
  });
  const sockets = [await open(["audiocraft-api", "audiocraft-api-key." + key]), await open(["audiocraft-api"])];
  return {status: without.status, refusal, sockets};
}
"""
KEY = "k" * 40


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("server"), "support.served:app") as running:
        yield running


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that requires a key."""
    with serve(tmp_path_factory.mktemp("guarded"), "support.served:app", keys=KEY) as running:
        yield running


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[BrowserContext]:
    with open_browser(tmp_path) as context:
        yield context


@pytest.fixture
def other_origin(tmp_path: Path) -> Iterator[str]:
    """Serve a page from another port, which is another origin."""
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "index.html").write_text(PAGE)
    with serve_files(pages) as url:
        yield f"{url}/"


def test_a_page_of_another_origin_generates_and_plays(
    server: Server, browser: BrowserContext, other_origin: str
) -> None:
    page = browser.new_page()
    page.goto(other_origin)
    for output_format in ("wav", "mp3", "ogg"):
        result = page.evaluate(GENERATE_AND_PLAY, [server.url, output_format])
        assert (result["status"], result["sameId"]) == (200, True)
        assert result["played"] == pytest.approx(1.0, abs=0.1)
    assert page.evaluate(READ_AN_ERROR, server.url) == [
        400,
        "prompt must have at least 1 character.",
    ]


def test_the_docs_load_everything_from_this_server(server: Server, browser: BrowserContext) -> None:
    page = browser.new_page()
    requested: list[str] = []
    console_errors: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.on("console", lambda message: console_errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: console_errors.append(str(error)))
    page.goto(server.url + "/docs")
    page.get_by_text("/generate-with-melody").first.wait_for(timeout=20_000)
    page.locator("#operations-generation-generate button").first.click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    page.get_by_text("audio_url").last.wait_for(timeout=20_000)
    page.locator(".live-responses-table .response-col_status", has_text="200").wait_for(timeout=20_000)
    assert len(requested) > 4
    assert not [url for url in requested if not url.startswith((server.url, "data:", "blob:"))]
    assert not console_errors


def test_the_index_page_links_to_the_docs(server: Server, browser: BrowserContext) -> None:
    page = browser.new_page()
    page.goto(server.url)
    page.get_by_role("link", name="API docs").click()
    page.get_by_text("/generate-with-melody").first.wait_for(timeout=20_000)


def test_a_page_of_another_origin_can_use_its_key(guarded: Server, browser: BrowserContext, other_origin: str) -> None:
    page = browser.new_page()
    page.goto(other_origin)
    assert page.evaluate(USE_A_KEY, [guarded.url, KEY]) == {
        "status": 401,
        "refusal": "Invalid or missing API key",
        "sockets": ["audiocraft-api", "refused"],
    }


def test_the_docs_are_authorized_with_a_key(guarded: Server, browser: BrowserContext) -> None:
    page = browser.new_page()
    page.goto(guarded.url + "/docs")
    page.get_by_role("button", name="Authorize").first.click(timeout=20_000)
    dialog = page.locator(".auth-container", has_text="X-API-Key")
    dialog.locator("input").fill(KEY)
    dialog.get_by_role("button", name="Apply credentials").click()
    page.get_by_role("button", name="Close").last.click()
    page.locator("#operations-models-models button").first.click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    page.locator(".live-responses-table .response-col_status", has_text="200").wait_for(timeout=20_000)
