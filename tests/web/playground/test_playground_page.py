"""The page as a whole: keyboard, accessibility, weight and speed."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, expect

from support.playground import Playground, playground
from support.served import Server, wait_until


def test_the_keyboard_is_enough(app: Playground) -> None:
    press = app.page.keyboard.press
    app.page.keyboard.type("solo cello")
    press("Control+Enter")
    expect(app.clips).to_have_count(1)
    app.form.locator("h1").click()  # leave the prompt
    player = app.page.get_by_label("Player")
    for key in ("k", "1", "k"):  # the clip plays from its first block on
        shown = {"k": "Play", "1": "Pause"}[key]
        press(key)
        expect(player.get_by_role("button", name=shown, exact=True)).to_be_visible()
    press("ArrowDown")
    expect(app.clip("solo cello").get_by_role("button", name="Play")).to_be_focused()
    for _ in range(3):
        press("Tab")
    assert app.page.evaluate("() => document.activeElement.getAttribute('role')") == "slider"
    press("End")
    expect(app.clip("solo cello").get_by_role("slider")).to_have_attribute("aria-valuetext", "8 seconds of 8 seconds")


def test_the_page_is_small(app: Playground) -> None:
    names = {name for name in app.requests if "/static/" in name}
    sizes = [len(app.page.request.get(name).body()) for name in names]
    assert len(names) > 10
    assert sum(sizes) < 400_000


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 320)])
def test_the_page_is_accessible(browser: Browser, server: Server, scheme: str, width: int) -> None:
    with playground(browser, server.url, color_scheme=scheme, viewport={"width": width, "height": 800}) as app:
        app.open("#prompt=solo%20cello&seed=1")
        app.generate("burn all the infidels", length=0)
        expect(app.page.locator("article.failed")).to_be_visible()
        card = app.generate_clip("a very long prompt " * 20, seconds=20)
        app.choose(card, "Loop a part")
        card.get_by_role("button", name="A/B").click()
        assert app.violations() == []
        for narrower in (width, width // 2):  # half the width is a zoom of 200 %
            app.page.set_viewport_size({"width": max(narrower, 320), "height": 800})
            expect(app.page.locator("main")).to_be_visible()
            assert app.page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0
        app.choose(card, "Show request")
        assert app.violations() == []
        app.page.keyboard.press("Escape")
        app.page.get_by_role("button", name="Key", exact=True).click()
        assert app.violations() == []


@pytest.mark.timing
def test_the_first_paint_is_fast(app: Playground) -> None:
    paints = "() => performance.getEntriesByName('first-contentful-paint').map((entry) => entry.startTime)"
    wait_until(lambda: app.page.evaluate(paints))
    # Measured on two cores, in milliseconds: 224; at a load of 10, up to 1,780.
    assert app.page.evaluate(paints)[0] < 2000
