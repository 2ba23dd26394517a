"""The Live tab of the playground in a real browser: a performance is steered, heard, kept and made again."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from playwright.sync_api import Browser, Locator, WebSocketRoute, expect

from audiocraft_api.web.services import services_of
from support.live import playing
from support.playground import Playground, playground
from support.served import serve, wait_until

FRAME_SAMPLES, AHEAD_FRAMES = 640, 4
LOADING_MILLISECONDS = 60_000  # a server imports PyTorch and loads the model first


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with playing(tmp_path_factory.mktemp("server")) as (port, _, _):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def app(browser: Browser, server: str) -> Iterator[Playground]:
    with playground(browser, server) as opened:
        opened.open("#live")
        yield opened


def test_the_clip_of_a_performance_is_what_the_server_makes_of_its_recipe(
    browser: Browser, demo_checkpoints: Path, tmp_path: Path
) -> None:
    with (
        serve(tmp_path, checkpoints_dir=demo_checkpoints, offline=True) as server,
        playground(browser, server.url, record=True) as app,
    ):
        app.open("#live")
        expect(app.page.get_by_label("Model", exact=True).last).to_have_value("demo")
        app.page.get_by_role("button", name="Play", exact=True).click()
        changes = app.page.locator("#live-log li")
        expect(changes).to_have_count(1, timeout=LOADING_MILLISECONDS)
        app.page.get_by_label("Weight of text 2").fill("50")
        app.page.get_by_label("Transition").fill("0.5")
        expect(changes).to_have_count(2)
        app.page.locator("#live-bpm").fill("120")
        expect(changes).to_have_count(3)
        expect(changes.nth(1)).to_contain_text(
            "lo-fi hip hop, electric piano, slow 67 %, techno, synth arpeggio, fast 33"
        )
        expect(changes.nth(2)).to_contain_text("tempo 120")
        changes.nth(1).get_by_role("button", name="Back to here").click()
        expect(changes).to_have_count(2)
        expect(app.page.locator("#live-bpm")).to_have_value("")
        expect(app.page.get_by_label("Player")).to_contain_text("0:02")
        app.page.get_by_role("button", name="Stop").click()
        card = app.clips.first
        expect(card).to_contain_text("demo · live · WAV")
        app.wait_for_silence()
        assert app.recorded().size > 32_000
        with app.page.expect_download() as download:
            card.get_by_role("button", name="Download", exact=True).click()
        played, _ = soundfile.read(Path(download.value.path()), dtype="int16")
        with app.page.expect_download() as download:
            app.choose(card, "Save the recipe")
        performance = json.loads(Path(download.value.path()).read_text())
        texts = [[prompt["text"] for prompt in change["prompts"]] for change in performance["changes"]]
        assert texts[-1] == ["lo-fi hip hop, electric piano, slow", "techno, synth arpeggio, fast"]
        made = server.post("/generate", json={"performance": performance}).json()
        samples, _ = soundfile.read(io.BytesIO(server.get(made["audio_url"]).content), dtype="int16")
        differing = np.flatnonzero(samples != played)
        end = performance["changes"][-1]["frame"] * FRAME_SAMPLES
        # The decoder reads a little ahead: what was heard just before the change came from music that was taken back.
        assert np.all((end - AHEAD_FRAMES * FRAME_SAMPLES <= differing) & (differing < end))
        card.get_by_role("button", name="Again").click()
        expect(app.page.get_by_role("textbox", name="Text 1")).to_have_value(texts[0][0])


def test_a_performance_is_steered_with_the_keyboard(browser: Browser, server: str) -> None:
    with playground(browser, server) as app:
        app.open()
        press = app.page.keyboard.press
        app.page.get_by_role("tab", name="Clip").focus()
        press("ArrowRight")
        expect(app.page.get_by_role("tab", name="Live")).to_have_attribute("aria-selected", "true")
        press("Tab")
        expect(app.page.get_by_role("slider", name="Listener")).to_be_focused()
        for _ in range(4):  # the two dots, Play, the first text
            press("Tab")
        expect(app.page.get_by_role("textbox", name="Text 1")).to_be_focused()
        press("Control+a")
        app.page.keyboard.type("solo cello")
        press("Enter")
        expect(app.page.locator("#live-stop")).to_be_enabled()
        expect(app.page.locator("#live-log li")).to_have_count(1)
        for _ in range(4):  # Remove, the weight, the second text, Remove
            press("Tab")
        press("Tab")
        expect(app.page.get_by_label("Weight of text 2")).to_be_focused()
        press("PageUp")
        expect(app.page.locator("#live-log li")).to_have_count(2)
        assert app.violations() == []
        pause_and_go_on(app)
        app.page.get_by_role("textbox", name="Text 2").fill("sad piano, kill yourself")
        press("Enter")
        expect(app.page.locator("#live-problem")).to_contain_text("prompt")
        app.page.get_by_label("Weight of text 1").fill("-100")
        app.page.get_by_label("Weight of text 2").fill("0")
        expect(app.page.locator("#live-problem")).to_have_text("Write a text, and give it a weight above 0.")
        app.page.locator("#live-stop").focus()
        press("Enter")
        expect(app.page.locator("#live-status")).to_have_text("The performance has ended.")
        expect(app.clips).to_have_count(1)


def test_the_distance_of_a_dot_from_the_listener_is_the_weight_of_its_text(app: Playground) -> None:
    first, second = (app.page.get_by_label(f"Weight of text {number}") for number in (1, 2))
    listener, dot = (app.page.get_by_role("slider", name=name) for name in ("Listener", "Text 2 on the pad"))
    drag(app, listener, to=dot)
    expect(first).to_have_value("0")
    expect(second).to_have_value("100")
    expect(dot).to_have_attribute("aria-valuetext", "100 %")
    listener.press("ArrowLeft")
    assert weights(app) == [5, 95]
    app.page.get_by_label("Weight of text 1").fill("50")
    assert place(app, "Text 1 on the pad") == pytest.approx(place(app, "Listener") - 75 / 2, abs=0.1)
    app.page.get_by_role("button", name="Add a text").click()
    app.page.keyboard.type("dub")
    assert weights(app) == [50, 95, 50]
    app.page.get_by_role("slider", name="Text 3 on the pad").press("ArrowUp")
    assert weights(app)[2] != 50
    for number in (3, 2):
        app.page.get_by_label(f"Remove text {number}").click()
    for _ in range(20):
        listener.press("ArrowRight")
    assert weights(app) == [5]  # it is the nearest one, though not within earshot
    expect(listener).to_have_attribute("aria-valuetext", "text 1: 100 %")
    assert app.violations() == []


def weights(app: Playground) -> list[int]:
    return [int(slider.input_value()) for slider in app.page.get_by_label("Weight of text").all()]


def place(app: Playground, name: str) -> float:
    """Return how far right something on the pad is, in units of the pad."""
    percent = app.page.get_by_role("slider", name=name).evaluate("(node) => parseFloat(node.style.left)")
    return 160 * float(percent) / 100


def drag(app: Playground, handle: Locator, *, to: Locator) -> None:
    start, end = handle.bounding_box(), to.bounding_box()
    assert start
    assert end
    mouse = app.page.mouse
    mouse.move(start["x"] + 2, start["y"] + start["height"] / 2)  # the ring, not the dot within
    mouse.down()
    mouse.move(end["x"] + end["width"] / 2, end["y"] + end["height"] / 2, steps=4)
    mouse.up()


def test_a_full_server_is_a_problem_that_is_shown(browser: Browser, tmp_path: Path) -> None:
    with (
        playing(tmp_path, live_max_sessions=1, live_max_sessions_per_key=0) as (port, _, app),
        services_of(app).live_sessions.admit("another"),
        playground(browser, f"http://127.0.0.1:{port}") as app_page,
    ):
        app_page.open("#live")
        app_page.page.get_by_role("button", name="Play", exact=True).click()
        expect(app_page.page.locator("#live-problem")).to_contain_text("1 live sessions are already open")
        expect(app_page.page.get_by_role("button", name="Play", exact=True)).to_be_enabled()


def test_a_refused_prompt_is_shown_and_the_music_plays_on(browser: Browser, tmp_path: Path) -> None:
    with playing(tmp_path) as (port, engine, _), playground(browser, f"http://127.0.0.1:{port}") as app:
        app.open("#live")
        app.page.get_by_role("textbox", name="Text 1").fill("sad piano, kill yourself")
        app.page.get_by_role("button", name="Play", exact=True).click()
        expect(app.page.locator("#live-problem")).to_contain_text("The prompt seems to contain")
        app.page.get_by_role("textbox", name="Text 1").fill("solo cello")
        app.page.get_by_role("button", name="Play", exact=True).click()
        expect(app.page.locator("#live-log li")).to_have_count(1)
        app.page.get_by_role("textbox", name="Text 1").fill("sad piano, kill yourself")
        app.page.keyboard.press("Enter")
        expect(app.page.locator("#live-problem")).to_contain_text("The prompt seems to contain")
        num_frames = engine.live[-1].num_frames_done
        wait_until(lambda: engine.live[-1].num_frames_done > num_frames)
        app.page.locator("#live-stop").click()
        expect(app.clips).to_have_count(1)


def test_a_change_made_before_the_first_sound_is_sent_with_it(app: Playground) -> None:
    sockets: list[WebSocketRoute] = []
    held: list[bytes] = []
    is_held = True

    def receive(message: str | bytes) -> None:
        if isinstance(message, bytes) and is_held:
            held.append(message)
        else:
            sockets[0].send(message)

    def connect(found: WebSocketRoute) -> None:
        sockets.append(found)
        found.connect_to_server().on_message(receive)

    app.page.route_web_socket("**/ws/live", connect)
    app.open("#live")
    app.page.get_by_role("button", name="Play", exact=True).click()
    expect(app.page.locator("#live-log li")).to_have_count(1)
    app.page.get_by_role("textbox", name="Text 1").fill("solo cello")
    app.page.keyboard.press("Enter")
    is_held = False
    for block in held:
        sockets[0].send(block)
    expect(app.page.locator("#live-log li").nth(1)).to_contain_text("solo cello")


def test_what_was_played_before_the_connection_was_lost_is_kept(browser: Browser, tmp_path: Path) -> None:
    with playing(tmp_path) as (port, _, _), playground(browser, f"http://127.0.0.1:{port}") as app:
        sockets = []
        app.page.route_web_socket("**/ws/live", lambda found: sockets.append((found, found.connect_to_server())))
        app.open("#live")
        app.page.get_by_role("button", name="Play", exact=True).click()
        expect(app.page.locator("#live-log li")).to_have_count(1)
        expect(app.page.get_by_label("Player")).to_contain_text("0:01")
        for socket in sockets[0]:
            socket.close()
        expect(app.page.locator("#live-problem")).to_contain_text("The connection to the server was lost")
        expect(app.clips.first).to_contain_text("live · WAV")


def pause_and_go_on(app: Playground) -> None:
    button = app.page.locator("#live-pause")
    for shown in ("Go on", "Pause"):
        button.focus()
        app.page.keyboard.press("Enter")
        expect(button).to_have_text(shown)
