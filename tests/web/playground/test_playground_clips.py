"""What a user can do with finished clips."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from playwright.sync_api import Browser, expect

from support.playground import Playground, playground
from support.served import Server


def test_variations_have_other_seeds(app: Playground) -> None:
    card = app.generate_clip("bossa nova")
    card.get_by_role("button", name="Vary").click()
    expect(app.clips).to_have_count(5)
    assert len(set(app.clips.get_by_title("Copy the seed").all_inner_texts())) == 5


def test_the_history_survives_a_reload(app: Playground) -> None:
    app.generate_clip("bossa nova").get_by_role("button", name="Star", exact=True).click()
    app.generate_clip("solo cello")
    app.open()
    expect(app.clips.get_by_role("heading")).to_have_text(["solo cello", "bossa nova"])
    app.page.get_by_label("Starred").check()
    expect(app.clips.get_by_role("heading")).to_have_text(["bossa nova"])
    app.page.get_by_label("Starred").uncheck()
    app.page.get_by_label("Search clips").fill("CELLO")
    card = app.clip("solo cello")
    expect(app.clips).to_have_count(1)
    app.choose(card, "Delete")
    expect(app.clips).to_have_count(0)
    app.page.get_by_role("button", name="Undo").click()
    expect(card).to_be_visible()


def test_exported_clips_can_be_imported_elsewhere(app: Playground, browser: Browser, server: Server) -> None:
    app.generate_clip("bossa nova")
    with app.page.expect_download() as download:
        app.page.get_by_label("History").click()
        app.page.get_by_role("button", name="Export as JSON").click()
    exported = Path(download.value.path()).read_bytes()
    assert json.loads(exported)["clips"][0]["fields"]["prompt"] == "bossa nova"
    with playground(browser, server.url) as other:
        other.open()
        for content, message in (
            (b"[]", "This file is not an export of this page."),
            (exported, "1 clips were added."),
        ):
            file = {"name": "clips.json", "mimeType": "application/json", "buffer": content}
            other.page.locator("#import-file").set_input_files(file)
            expect(other.page.locator("#toast")).to_have_text(message)
        other.clip("bossa nova").get_by_role("button", name="Play").click()
        expect(other.page.get_by_label("Player")).to_contain_text("0:00 / 0:01")


def test_audio_that_the_server_has_deleted_is_made_again(app: Playground, directory: Path) -> None:
    card = app.generate_clip("bossa nova")
    seed = card.get_by_title("Copy the seed").inner_text()
    for file in (directory / "audio").rglob("*.wav"):
        file.unlink()
    app.page.context.new_cdp_session(app.page).send("Network.clearBrowserCache")  # a browser may still have it
    app.open()
    card.get_by_role("button", name="Play").click()
    app.page.context.set_offline(True)
    card.get_by_role("button", name="Make it again").click()
    expect(app.page.locator("article.failed")).to_be_visible()
    expect(card.get_by_role("button", name="Make it again")).to_be_visible()  # the recipe is not lost
    app.page.get_by_role("button", name="Dismiss").click()
    app.page.context.set_offline(False)
    card.get_by_role("button", name="Make it again").click()
    expect(card.get_by_text("no longer has this audio")).to_be_hidden()
    expect(card.get_by_title("Copy the seed")).to_have_text(seed)


def test_a_link_fills_in_everything(app: Playground, browser: Browser, server: Server) -> None:
    app.page.locator("#more > summary").click()
    app.form.get_by_label("Guidance").fill("5.5")
    app.form.get_by_label("Without").fill("drums")
    app.form.get_by_label("Tempo").fill("90")
    app.form.get_by_label("Key").select_option("A minor")
    app.form.get_by_label("Time signature").select_option("3/4")
    app.form.get_by_label("Fade out").fill("0.5")
    app.form.get_by_label("Seed").fill("42")
    card = app.generate_clip("piano & 100% strings", seconds=2)
    link = app.link(card).replace("model_size=demo", "model_size=large")
    with playground(browser, server.url) as other:
        other.open(link[link.index("#") :])
        expect(other.form.get_by_label("Model", exact=True)).to_have_value("large")
        expect(other.page.get_by_label("Description of the music")).to_have_value("piano & 100% strings")
        expect(other.form.get_by_label("Guidance")).to_have_value("5.5")
        expect(other.form.get_by_label("Without")).to_have_value("drums")
        expect(other.form.get_by_label("Tempo")).to_have_value("90")
        expect(other.form.get_by_label("Key")).to_have_value("A minor")
        expect(other.form.get_by_label("Time signature")).to_have_value("3/4")
        expect(other.form.get_by_label("Fade out")).to_have_value("0.5")
        expect(other.form.get_by_label("Seed")).to_have_value("42")
        expect(other.page.locator("#length-value")).to_have_text("2 s")


def test_the_request_is_shown_as_programs_that_run(app: Playground, server: Server) -> None:
    card = app.generate_clip("it's a bossa")
    app.choose(card, "Show request")
    dialog = app.page.get_by_role("dialog", name="The request as a program")
    code = dialog.get_by_role("tabpanel")
    expect(code).to_contain_text(f"curl -s '{server.url}/generate'")
    for name in ("Python", "JavaScript", "WebSocket"):
        dialog.get_by_role("tab", name=name).click()
        expect(code).to_contain_text("it's a bossa")
    dialog.get_by_role("tab", name="curl").click()
    ran = subprocess.run(["bash", "-c", code.inner_text()], capture_output=True, check=True)
    assert json.loads(ran.stdout)["success"]
    dialog.get_by_role("tab", name="Python").click()
    program = code.inner_text().replace("print(", "result = (")
    found: dict[str, object] = {}
    exec(program, found)
    assert server.get(str(found["result"])).status_code == 200


def test_two_clips_are_compared_at_the_same_position(app: Playground) -> None:
    for prompt in ("bossa nova", "solo cello"):
        app.generate_clip(prompt, seconds=20).get_by_role("button", name="A/B").click()
    player = app.page.get_by_label("Player")
    expect(player.get_by_role("button", name="A", exact=True)).to_have_attribute("aria-pressed", "true")
    expect(player).to_contain_text("bossa nova")
    expect(player).to_contain_text("0:02 / 0:20")
    player.get_by_role("button", name="B", exact=True).click()
    expect(player).to_contain_text("solo cello")
    assert re.search("0:0[2-9] / 0:20", player.inner_text())
    player.get_by_role("button", name="End the comparison").click()
    expect(player).to_be_hidden()


def test_a_region_is_looped(app: Playground) -> None:
    card = app.generate_clip("bossa nova", seconds=4)
    app.choose(card, "Loop a part")
    start, end = (card.get_by_role("slider", name=f"{name} of the region") for name in ("Start", "End"))
    expect(start).to_have_attribute("aria-valuetext", "1 second")
    end.focus()
    app.page.keyboard.press("ArrowLeft")
    expect(end).to_have_attribute("aria-valuetext", "2.9 seconds")


def test_a_clip_is_continued(app: Playground) -> None:
    card = app.generate_clip("bossa nova", seconds=2)
    app.choose(card, "Loop a part")
    app.choose(card, "Continue from here")
    longer = app.clips.filter(has_text="continues from 1.5 s")
    expect(longer).to_contain_text("3.5 s · demo · WAV")
    app.choose(longer, "Show request")
    code = app.page.get_by_role("dialog", name="The request as a program").get_by_role("tabpanel")
    expect(code).to_contain_text(re.compile(r'"continue_from":{"audio_url":"/audio/[0-9a-f-]+.wav","end":1.5}'))
    app.page.keyboard.press("Escape")
    longer.get_by_role("button", name="Vary").click()
    expect(longer).to_have_count(5)
    assert not [sent for sent in app.requests if "/generate-continuation" in sent]  # the server has the clip


def test_a_clip_that_the_server_has_deleted_is_uploaded_to_be_continued(app: Playground) -> None:
    card = app.generate_clip("bossa nova", seconds=2)
    missing = {"error": "There is no such audio file.", "code": "not_found", "request_id": "1"}
    app.page.route("**/generate-async", lambda route: route.fulfill(status=404, json=missing))
    app.choose(card, "Continue from here")
    expect(app.clips.filter(has_text="continues from")).to_contain_text("demo · WAV")
    assert [sent for sent in app.requests if "/generate-continuation-async" in sent]
