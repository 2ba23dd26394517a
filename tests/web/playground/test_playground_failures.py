"""What the page says when something goes wrong, and what it does then."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Browser, expect

from support.playground import STREAMED, Playground, playground
from support.served import serve

KEY = "k" * 40


def test_a_key_is_asked_for_and_used(browser: Browser, tmp_path: Path) -> None:
    with serve(tmp_path, STREAMED, keys=KEY) as server, playground(browser, server.url) as app:
        app.open()
        app.page.get_by_role("button", name="Enter a key").click()
        app.page.get_by_label("API key", exact=True).last.fill(KEY)
        app.page.get_by_role("button", name="Use this key").click()
        card = app.generate_clip("bossa nova")
        app.open()  # the key was in memory only
        expect(app.page.get_by_text("This server needs an API key.")).to_be_visible()
        app.page.get_by_role("button", name="Enter a key").click()
        app.page.get_by_label("API key", exact=True).last.fill(KEY)
        app.page.get_by_label("Keep it until this tab is closed").check()
        app.page.get_by_role("button", name="Use this key").click()
        app.open()
        card.get_by_role("button", name="Play").click()
        expect(app.page.get_by_label("Player")).to_contain_text("0:00 / 0:01")


def test_a_full_server_is_tried_again(browser: Browser, tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    hold.touch()
    with (
        serve(tmp_path, STREAMED, max_streams=1) as server,
        playground(browser, server.url) as other,
        playground(browser, server.url) as app,
    ):
        other.open()
        other.generate("hold after 3", length=0)
        expect(other.jobs).to_contain_text("Making the music")
        app.open()
        app.generate("hold after 3", length=0)
        refused = app.page.locator("article.failed")
        expect(refused.get_by_role("alert")).to_contain_text("The server is busy")
        expect(refused).to_contain_text("Tries again in")
        hold.unlink()
        expect(app.clips).to_have_count(1)
        # The page has all of a server with room for one: its clips wait for each other, and none fails.
        app.clips.first.get_by_role("button", name="Vary").click()
        expect(app.clips).to_have_count(5)
        expect(app.page.locator("article.failed")).to_have_count(0)


def test_a_limit_says_when_the_next_try_can_succeed(browser: Browser, tmp_path: Path) -> None:
    with serve(tmp_path, STREAMED, requests_per_minute=1) as server, playground(browser, server.url) as app:
        app.open()
        expect(app.page.locator("#limits")).to_have_text("1 of 1 requests left this minute")
        app.generate_clip("bossa nova")
        expect(app.page.locator("#limits")).to_have_text("0 of 1 requests left this minute")
        app.generate("solo cello")
        expect(app.page.locator("article.failed")).to_contain_text("You have reached a limit")
        expect(app.page.locator("article.failed")).to_contain_text("Tries again in")
        app.page.get_by_role("button", name="Dismiss").click()
        expect(app.page.locator("article.failed")).to_have_count(0)


def test_a_refused_prompt_is_replaced_with_one_click(app: Playground) -> None:
    app.generate("burn all the infidels", length=0)
    expect(app.page.locator("article.failed")).to_contain_text("The prompt was refused")
    app.page.get_by_role("button", name="Try “battle drums, dark brass”").click()
    expect(app.clip("battle drums, dark brass")).to_be_visible()


def test_a_failed_generation_is_shown(app: Playground) -> None:
    app.generate("fail after 3")
    expect(app.page.locator("article.failed")).to_contain_text("The generation failed.")


def test_a_lost_connection_is_shown_and_tried_again(app: Playground) -> None:
    app.page.context.set_offline(True)
    app.generate("bossa nova", length=0)
    expect(app.page.locator("article.failed")).to_contain_text("No connection to the server")
    app.page.context.set_offline(False)
    expect(app.clip("bossa nova")).to_be_visible()
