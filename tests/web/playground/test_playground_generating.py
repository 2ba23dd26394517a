"""A clip is made: from the first sound to its card, with sections, melodies, uploads and recordings."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from playwright.sync_api import Browser, FilePayload, expect

from support.http import melody_file
from support.playground import Playground, assert_is_played, playground
from support.served import Server, serve, wait_until

DROP = """
(melody) => {
  const transfer = new DataTransfer();
  const bytes = Uint8Array.from(atob(melody), (letter) => letter.charCodeAt(0));
  transfer.items.add(new File([bytes], "recording.wav", {type: "audio/wav"}));
  document.body.dispatchEvent(new DragEvent("drop", {bubbles: true, cancelable: true, dataTransfer: transfer}));
}
"""
LOADING_MILLISECONDS = 60_000  # a server imports PyTorch and loads the model for its first clip


def recording() -> FilePayload:
    return {"name": "recording.wav", "mimeType": "audio/wav", "buffer": melody_file().getvalue()}


def test_what_is_heard_is_the_file(browser: Browser, demo_checkpoints: Path, tmp_path: Path) -> None:
    """From the first block of the stream to its end."""
    with (
        serve(tmp_path, checkpoints_dir=demo_checkpoints, offline=True) as server,
        playground(browser, server.url, record=True) as app,
    ):
        app.open()
        app.page.locator("#more > summary").click()
        app.form.get_by_label("Model", exact=True).select_option("small")
        app.generate("warm analog synth arpeggio", length=3)
        failed = app.page.locator("article.failed")
        expect(failed).to_contain_text("This model cannot be used now", timeout=LOADING_MILLISECONDS)
        expect(failed).to_contain_text("facebook/musicgen-small is not on this machine")
        failed.get_by_role("button", name="Use demo", exact=True).click()
        card = app.clip("warm analog synth arpeggio")
        expect(card).to_contain_text("4 s · demo · WAV", timeout=LOADING_MILLISECONDS)
        app.wait_for_silence()
        assert_is_played(app.recorded(), app.downloaded("warm analog synth arpeggio"))


def test_a_clip_is_played_and_drawn_while_it_is_made(app: Playground, hold: Path) -> None:
    app.generate("hold after 8", length=1)
    expect(app.jobs.locator(".wave-slider.growing")).to_be_visible()
    expect(app.jobs).to_contain_text("Making the music")
    player = app.page.get_by_label("Player")
    expect(player.get_by_role("button", name="Pause")).to_be_visible()
    expect(player).to_contain_text("0:00 / 0:02")
    hold.unlink()
    expect(app.clip("hold after 8")).to_contain_text("2 s · demo · WAV")
    expect(app.jobs).to_have_count(0)


def test_a_waiting_clip_shows_its_place_in_the_queue(app: Playground, hold: Path) -> None:
    app.generate("wait at 2", length=0)
    expect(app.jobs).to_contain_text("Number 2 in the queue · about 12 seconds left")
    hold.unlink()
    expect(app.clip("wait at 2")).to_be_visible()


def test_a_clip_is_canceled(app: Playground, hold: Path, server: Server) -> None:  # noqa: ARG001
    app.generate("hold after 3")
    app.jobs.get_by_role("button", name="Cancel").click()
    expect(app.jobs).to_have_count(0)
    expect(app.page.get_by_text("Your clips will be here.")).to_be_visible()
    wait_until(lambda: server.num_running() == 0)


def test_two_clips_are_made_at_once_and_the_third_waits(app: Playground, hold: Path) -> None:
    for _ in range(3):
        app.generate("hold after 3", length=0)
    expect(app.jobs.filter(has_text="Making the music")).to_have_count(2)
    expect(app.jobs.filter(has_text="Waits for your other clips.")).to_have_count(1)
    hold.unlink()
    expect(app.clips).to_have_count(3)


def test_without_websockets_the_clip_comes_over_http(browser: Browser, server: Server) -> None:
    with playground(browser, server.url) as app:
        app.page.add_init_script("window.WebSocket = class { constructor() { setTimeout(() => this.onclose()); } };")
        app.open()
        app.generate_clip("bossa nova")
        app.open()
        app.clip("bossa nova").get_by_role("button", name="Play").click()
        expect(app.page.get_by_label("Player")).to_contain_text("0:00 / 0:01")


def test_sections_follow_each_other(app: Playground, browser: Browser, server: Server) -> None:
    page = app.page
    page.get_by_label("Description of the music").fill("calm piano")
    page.locator("#length").fill("1")
    page.locator("#more > summary").click()
    add = page.get_by_role("button", name="Add a section")
    for prompt, seconds in (("choir", "1.5"), ("drums", "3")):
        add.click()
        page.keyboard.type(prompt)
        page.get_by_label("Seconds of section").last.fill(seconds)
    add.click()
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#sections-problem")).to_have_text("Describe each section, or remove it.")
    expect(page.get_by_role("textbox", name="Section 4", exact=True)).to_be_focused()
    page.get_by_role("button", name="Remove section 4").click()
    for number in (3, 2):
        page.get_by_role("button", name=f"Move section {number} up").click()
    expect(page.locator("#sections-total")).to_have_text("Together 6.5 seconds")
    expect(page.locator("#length-value")).to_have_text("3 s")
    assert app.violations() == []
    page.keyboard.press("Control+Enter")
    card = app.clip("drums → calm piano → choir")
    expect(card).to_contain_text("6.5 s")
    segments = [("drums", 3), ("calm piano", 2), ("choir", 1.5)]
    sent = {"segments": [{"prompt": prompt, "duration": seconds} for prompt, seconds in segments]}
    app.choose(card, "Show request")
    expect(page.locator("#request-code")).to_contain_text(json.dumps(sent, separators=(",", ":"))[:-1])
    page.keyboard.press("Escape")
    link = app.link(card)
    with playground(browser, server.url) as other:
        other.open(link[link.index("#") :])
        expect(other.page.get_by_label("Description of the music")).to_have_value("drums")
        expect(other.page.get_by_role("textbox", name="Section 3", exact=True)).to_have_value("choir")
        expect(other.page.locator("#sections-total")).to_have_text("Together 6.5 seconds")
    app.open()  # from the history
    card.get_by_role("button", name="Again").click()
    expect(page.get_by_role("textbox", name="Section 2", exact=True)).to_have_value("calm piano")
    page.locator("#melody-file").set_input_files(recording())
    expect(page.locator("#sections-field")).to_be_hidden()  # requests with an upload have no segments


def test_an_upload_is_continued(app: Playground) -> None:
    app.page.locator("#melody-file").set_input_files(recording())
    app.page.get_by_label("What to do with the audio").select_option("Continue it")
    expect(app.page.locator("#melody")).to_contain_text("The music continues")
    app.generate_clip("string quartet")
    app.open()
    card = app.clip("string quartet")
    expect(card).to_contain_text("continues recording.wav")
    card.get_by_role("button", name="Vary").click()
    expect(app.clips).to_have_count(5, timeout=60_000)


@pytest.mark.parametrize("source", ["upload", "drop", "microphone", "clip"])
def test_music_follows_a_melody(app: Playground, source: str) -> None:
    if source == "clip":
        app.choose(app.generate_clip("bossa nova"), "Use as melody")
    elif source == "drop":
        app.page.evaluate(DROP, base64.b64encode(melody_file().getvalue()).decode())
    else:
        app.page.locator("#more > summary").click()
    if source == "upload":
        app.page.locator("#melody-file").set_input_files(recording())
    if source == "microphone":
        app.page.get_by_role("button", name="Record").click()
        stop = app.page.get_by_role("button", name="Stop recording")
        expect(stop).to_be_visible()
        app.page.wait_for_timeout(900)  # what is recorded must be half a second long
        stop.click()
    expect(app.page.locator("#melody")).to_contain_text("The music follows")
    app.generate_clip("string quartet")
    expect(app.clip("string quartet")).to_contain_text("follows")


def test_music_follows_notes_and_the_request_is_shown_as_a_form(app: Playground) -> None:
    app.page.locator("#more > summary").click()
    notes = app.page.get_by_label("Notes to follow")
    notes.fill("C4:1 E4:1 G4:2 -:1")
    notes.blur()
    expect(app.page.locator("#sections-field")).to_be_hidden()
    app.generate_clip("string quartet")
    card = app.clip("string quartet")
    expect(card).to_contain_text("follows notes")
    app.choose(card, "Show request")
    expect(app.page.locator("#request-code")).to_contain_text("generate-with-melody")
    expect(app.page.locator("#request-code")).to_contain_text("-F 'notes=C4:1 E4:1 G4:2 -:1'")
    app.page.locator("#request-close").click()
    app.open()  # from the history
    app.clip("string quartet").get_by_role("button", name="Again").click()
    expect(notes).to_have_value("C4:1 E4:1 G4:2 -:1")
    app.page.locator("#melody-file").set_input_files(recording())
    expect(notes).to_be_disabled()
