"""A real Chromium without a window, and a server of static files for pages of another origin."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from playwright.sync_api import Browser, BrowserContext, sync_playwright

SWITCHES = (
    *("no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"),
    *("disable-component-update", "disable-sync", "autoplay-policy=no-user-gesture-required"),
)


@contextmanager
def launch_browser(*switches: str) -> Iterator[Browser]:
    """Run Chromium for several tests, each of which opens a context of its own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_program(), headless=True, args=_arguments(switches))
        yield browser
        browser.close()


@contextmanager
def open_browser(directory: Path) -> Iterator[BrowserContext]:
    """Run Chromium with a profile of its own in `directory`."""
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            directory / "profile",
            executable_path=_program(),
            headless=True,
            args=_arguments(),
        )
        yield context
        context.close()


def _program() -> str:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert program, "the tests need Chromium; `make test` installs it"
    return program


def _arguments(switches: tuple[str, ...] = ()) -> list[str]:
    return [f"--{switch}" for switch in (*SWITCHES, *switches)]


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_arguments: object) -> None:
        pass


@contextmanager
def serve_files(directory: Path) -> Iterator[str]:
    """Serve the files of a directory; yield the URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_QuietHandler, directory=directory))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
