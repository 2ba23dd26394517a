"""Chromium, a server with a fake engine, and the page in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from support.browser import launch_browser
from support.playground import STREAMED, Playground, playground
from support.served import Server, paused, serve

FAKE_MICROPHONE = ("use-fake-device-for-media-stream", "use-fake-ui-for-media-stream")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launch_browser(*FAKE_MICROPHONE) as running:
        yield running


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(directory: Path) -> Iterator[Server]:
    with serve(directory, STREAMED) as running:
        yield running


@pytest.fixture
def hold(directory: Path) -> Iterator[Path]:
    """A file that pauses generations with the prompt `hold after N`."""
    file = directory / "hold"
    with paused(file):
        yield file


@pytest.fixture
def app(browser: Browser, server: Server) -> Iterator[Playground]:
    with playground(browser, server.url) as opened:
        opened.open()
        yield opened
