"""The parts of the playground that carry samples: its modules run in a browser, on samples of the tests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from support.playground import assert_is_played, playground
from support.served import Server

RAMP = np.arange(1, 12_001, dtype=np.float32) / 12_000
# Feeds a ring buffer and reads it by turns. Each step is [frames to write, frames to read]; -1 ends the stream.
RUN_RING = """
async ([steps, channels, options]) => {
  const {RingBuffer} = await import("/docs/static/playground/ring-buffer.js");
  const ring = new RingBuffer(1, 1000, options);
  const heard = Array.from({length: channels}, () => []);
  const states = [];
  let written = 0;
  for (const [write, read] of steps) {
    if (write < 0) ring.end();
    else if (write) {
      ring.write([Float32Array.from({length: write}, (_, i) => (written + i + 1) / 12000)]);
      written += write;
    }
    const outputs = heard.map(() => new Float32Array(read));
    if (read) ring.read(outputs);
    heard.forEach((all, channel) => all.push(...outputs[channel]));
    states.push([ring.position, ring.filling, ring.underruns, ring.finished]);
  }
  return {heard, states};
}
"""
HAS_STOPPED = """
() => recorded.some((block) => block[64] !== 0) && recorded.at(-1).every((sample) => sample === 0)
"""
# Keeps clips [ID, bytes of audio] in a new history, the oldest first; those with a star have it in their ID. Returns
# how many bytes of each it still has, which it reported as changed, and the error.
KEEP = """
async ([clips, limits]) => {
  const {History} = await import("/docs/static/playground/history.js");
  const history = new History(`test-${Math.random()}`, limits);
  const changed = [];
  let error = null;
  history.addEventListener("change", ({id}) => changed.push(id));
  for (const [index, [id, bytes]] of clips.entries()) {
    const random = (length) => crypto.getRandomValues(new Uint8Array(length)); // of at most 65,536 bytes
    const parts = Array.from({length: Math.floor(bytes / 50_000)}, () => random(50_000));
    const melody = new Blob([random(bytes % 50_000), ...parts]);
    const clip = {id, created: index, starred: id.endsWith("*"), fields: {prompt: id}};
    await history.put(bytes ? {...clip, melody} : clip).catch(({message}) => (error = message));
  }
  const all = (await history.all()).sort((a, b) => a.created - b.created);
  return {clips: Object.fromEntries(all.map(({id, melody}) => [id, melody?.size ?? 0])), changed, error};
}
"""
NO_WEBSOCKET = "window.WebSocket = class { constructor() { setTimeout(() => this.onclose()); } };"
LOUDNESS = """
async ([seconds, rate, frequency, amplitude, channels]) => {
  const {loudnessOf, matchingGains} = await import("/docs/static/playground/loudness.js");
  const tone = Float32Array.from(
    {length: seconds * rate}, (_, i) => amplitude * Math.sin((2 * Math.PI * frequency * i) / rate));
  return loudnessOf(Array.from({length: channels}, () => tone), rate);
}
"""


@pytest.fixture(scope="module")
def page(browser: Browser, server: Server) -> Iterator[Page]:
    with playground(browser, server.url) as app:
        app.open()
        yield app.page


def run_ring(page: Page, *steps: tuple[int, int], channels: int = 1, **options: float) -> dict[str, Any]:
    options = {"prerollSeconds": 0.1, "fadeSeconds": 0.01} | options
    result: dict[str, Any] = page.evaluate(RUN_RING, [steps, channels, options])
    result["heard"] = np.array(result["heard"], np.float32)
    return result


def test_a_stream_that_arrives_in_time_is_played_as_it_is(page: Page) -> None:
    steps = [(99, 50), (2000, 700), (900, 1300), (3000, 2000), (-1, 2500)]
    heard = run_ring(page, *steps)["heard"][0]
    np.testing.assert_array_equal(heard[:50], 0)  # the preroll has not arrived
    np.testing.assert_array_equal(heard[50 : 50 + 5999], RAMP[:5999])
    assert not heard[50 + 5999 :].any()


def test_more_audio_than_the_buffer_holds_makes_it_larger(page: Page) -> None:
    heard = run_ring(page, (5000, 4000), (7000, 2000), (-1, 6000))["heard"][0]
    np.testing.assert_array_equal(heard, RAMP)


def test_an_underrun_fades_out_and_the_audio_fades_in_where_it_stopped(page: Page) -> None:
    steps = [(300, 400), (100, 100), (100, 100), (200, 100), (-1, 400)]
    result = run_ring(page, *steps)
    heard = result["heard"][0]
    assert [state[2] for state in result["states"]] == [1, 1, 1, 1, 1]
    assert [state[1] for state in result["states"]] == [True, True, False, False, False]
    np.testing.assert_array_equal(heard[:290], RAMP[:290])
    out = heard[290:300] / RAMP[290:300]
    np.testing.assert_allclose(out, np.arange(9, -1, -1) / 10, atol=1e-6)
    np.testing.assert_array_equal(heard[300:500], 0)  # the second preroll is twice as long
    np.testing.assert_allclose(heard[500:510] / RAMP[300:310], np.arange(1, 11) / 10, atol=1e-6)
    np.testing.assert_array_equal(heard[510:900], RAMP[310:700])
    assert not heard[900:].any()
    assert result["states"][-1][3]


def test_the_wait_after_an_underrun_has_a_limit(page: Page) -> None:
    steps = [step for _ in range(8) for step in ((100, 100), (4000, 4100))]
    states = run_ring(page, *steps, prerollSeconds=3)["states"]
    assert states[-1][2] == 8  # four seconds of audio are enough each time


def test_a_mono_stream_is_played_on_every_channel(page: Page) -> None:
    heard = run_ring(page, (500, 0), (-1, 500), channels=2)["heard"]
    np.testing.assert_array_equal(heard[0], RAMP[:500])
    np.testing.assert_array_equal(heard[1], RAMP[:500])


@pytest.mark.parametrize(
    ("amplitude", "channels", "lufs"),
    [(1.0, 1, -3.01), (0.1, 1, -23.01), (0.1, 2, -20.0)],
)
@pytest.mark.parametrize("rate", [32_000, 48_000])
def test_loudness_is_measured_as_the_standard_says(
    page: Page, rate: int, amplitude: float, channels: int, lufs: float
) -> None:
    """A tone of 997 Hz at full scale in one channel is -3.01 LUFS (ITU-R BS.1770-4)."""
    assert page.evaluate(LOUDNESS, [2, rate, 997, amplitude, channels]) == pytest.approx(lufs, abs=0.05)


def test_the_history_is_bounded_and_the_oldest_audio_goes_first(page: Page) -> None:
    kept = page.evaluate(KEEP, [[["a", 10], ["b", 10], ["c", 0], ["d", 10]], {"files": 2, "bytes": 1000}])
    assert kept == {"clips": {"a": 0, "b": 10, "c": 0, "d": 10}, "changed": ["a"], "error": None}
    kept = page.evaluate(KEEP, [[["a", 600], ["b", 600], ["c", 600]], {"bytes": 1300}])
    assert kept == {"clips": {"a": 0, "b": 600, "c": 600}, "changed": ["a"], "error": None}
    kept = page.evaluate(KEEP, [[["a*", 0], ["b", 0], ["c", 0], ["d", 0]], {"clips": 3}])
    assert kept == {"clips": {"a*": 0, "c": 0, "d": 0}, "changed": ["b"], "error": None}


def test_a_full_storage_is_reported(browser: Browser, server: Server) -> None:
    with playground(browser, server.url) as app:
        app.open()
        storage = app.page.context.new_cdp_session(app.page)
        storage.send("Storage.overrideQuotaForOrigin", {"origin": server.url, "quotaSize": 100_000})
        kept = app.page.evaluate(KEEP, [[["a", 900_000]], {}])
    assert kept == {
        "clips": {},
        "changed": [],
        "error": "The browser has no room for the clip in its history. Download it, or delete other clips.",
    }


def test_an_underrun_loses_no_sample_on_a_busy_processor(browser: Browser, server: Server, directory: Path) -> None:
    """The stream stops after 1.2 seconds and continues later."""
    hold = directory / "hold"
    hold.touch()
    with playground(browser, server.url, record=True) as app:
        app.open()
        processor = app.page.context.new_cdp_session(app.page)
        processor.send("Emulation.setCPUThrottlingRate", {"rate": 4})
        app.generate("hold after 12", length=2)
        app.page.wait_for_function(HAS_STOPPED)
        expect(app.page.get_by_label("Player")).to_contain_text("Buffering")
        hold.unlink()
        app.wait_for_silence()
        processor.send("Emulation.setCPUThrottlingRate", {"rate": 1})
        assert assert_is_played(app.recorded(), app.downloaded("hold after 12")) >= 1


def test_a_slow_network_pauses_the_music_and_loses_no_sample(browser: Browser, server: Server) -> None:
    """The samples arrive at three quarters of their rate. Chromium slows down HTTP, and no WebSocket."""
    with playground(browser, server.url, record=True) as app:
        app.page.add_init_script(NO_WEBSOCKET)
        app.open()
        network = app.page.context.new_cdp_session(app.page)
        conditions = {"offline": False, "latency": 50, "downloadThroughput": 96_000, "uploadThroughput": -1}
        network.send("Network.enable")
        network.send("Network.emulateNetworkConditions", conditions)
        app.generate("solo cello", length=3)
        expect(app.clip("solo cello")).to_be_visible()
        app.wait_for_silence()
        assert assert_is_played(app.recorded(), app.downloaded("solo cello")) >= 1


def test_a_finished_clip_continues_where_its_stream_is_left(browser: Browser, server: Server) -> None:
    with playground(browser, server.url, record=True) as app:
        app.open()
        app.generate_clip("solo cello", seconds=3)
        player = app.page.get_by_label("Player")
        expect(player).to_contain_text("0:01 / 0:03")
        app.form.locator("h1").click()  # leave the prompt
        app.page.keyboard.press("k")
        expect(player.get_by_role("button", name="Play", exact=True)).to_be_visible()
        expect(player).to_contain_text(re.compile("0:0[12] / 0:03"))
        app.page.keyboard.press("l")
        expect(player).to_contain_text("0:03 / 0:03")
        app.page.keyboard.press("k")
        app.wait_for_silence()
        loudest = np.abs(app.downloaded("solo cello")).max() + 1e-4
        assert np.abs(app.recorded()).max() <= loudest  # the stream and the file are not heard together
