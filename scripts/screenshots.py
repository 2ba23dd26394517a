"""Takes the screenshots of the playground in `docs/images`: PYTHONPATH=.:tests python scripts/screenshots.py

A fake engine stands in for the model, so that the pictures do not depend on the machine.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser

from support.browser import launch_browser
from support.playground import Playground
from support.served import Server, serve

IMAGES = Path(__file__).parent.parent / "docs" / "images"
PROMPTS = (
    "lo-fi hip hop, dusty drums, mellow electric piano, rainy night, 80 bpm",
    "solo cello in a cathedral, slow and aching, long reverb",
    "driving synthwave, pulsing bass, bright arpeggios, 80s night drive, 110 bpm",
    "bossa nova, nylon guitar, brushed drums, warm upright bass, late afternoon",
    "slow ambient pads, evolving textures, distant bells, no drums",
)
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 780}


# The prompt of the clip that is being made controls the fake engine.
NAME_JOB = """
() => {
  for (const title of document.querySelectorAll(".job h3, .transport-title")) title.textContent = "warm analog synth";
}
"""


def history() -> bytes:
    """Return clips as the page exports them."""
    source = random.Random(3)
    clips = []
    for number, prompt in enumerate(PROMPTS):
        seconds = source.choice([8, 12, 20, 30])
        levels = [source.uniform(0.3, 0.9) for _ in range(20)]
        peaks = [round(100 * levels[bin // 12] * source.uniform(0.6, 1)) for bin in range(240)]
        fields = {"prompt": prompt, "model_size": "medium", "duration": seconds, "output_format": "wav"}
        clip: dict[str, Any] = {"id": str(number), "created": 1000 * (time.time() - 3600 * number - 600)}
        clip |= {"fields": fields, "seed": source.randrange(10**9), "duration": seconds, "sampleRate": 32_000}
        clip |= {"format": "wav", "audioUrl": None, "peaks": peaks, "loudness": -18, "starred": number == 1}
        clips.append(clip)
    return json.dumps({"audiocraft_playground": 1, "clips": clips}).encode()


def take(
    browser: Browser,
    server: Server,
    name: str,
    scheme: Any,
    size: Any,
    *,
    scale: float = 1,
    is_generating: bool = False,
) -> None:
    context = browser.new_context(color_scheme=scheme, viewport=size, device_scale_factor=scale)
    app = Playground(context.new_page(), server.url)
    app.open()
    file: Any = {"name": "clips.json", "mimeType": "application/json", "buffer": history()}
    app.page.locator("#import-file").set_input_files(file)
    app.clip(PROMPTS[0]).wait_for()
    if is_generating:
        app.generate("hold after 40", length=7)
        app.page.get_by_text("Making the music").wait_for()
        app.page.get_by_label("Player").get_by_text("0:02").wait_for()
    app.page.get_by_label("Description of the music").fill("warm analog synth arpeggio, slow build, 90 bpm")
    app.page.evaluate("() => { document.getElementById('toast').hidden = true; document.activeElement.blur(); }")
    app.page.evaluate(NAME_JOB)
    app.page.screenshot(path=IMAGES / f"playground-{name}.png")
    context.close()


def take_live(browser: Browser, server: Server) -> None:
    context = browser.new_context(color_scheme="light", viewport={"width": 1280, "height": 1180})
    app = Playground(context.new_page(), server.url)
    app.open("#live")
    page, changes = app.page, app.page.locator("#live-log li")
    page.locator("#live-form summary").click()
    page.locator("#live-model").select_option("demo-stereo")  # the fake engine plays in stereo
    page.locator("#live-form summary").click()
    page.get_by_role("button", name="Play", exact=True).click()
    page.get_by_label("Player").get_by_text("0:01").wait_for()
    listener = page.get_by_role("slider", name="Listener")
    for _ in range(6):
        listener.press("ArrowRight")
    changes.nth(1).wait_for()
    page.get_by_role("button", name="Add a text").click()
    page.keyboard.type("dub bass, vinyl crackle")
    page.keyboard.press("Enter")
    listener.press("ArrowUp")
    changes.nth(2).wait_for()
    page.locator("#live-bpm").fill("96")
    changes.nth(3).wait_for()
    page.evaluate("() => document.activeElement.blur()")
    page.screenshot(path=IMAGES / "playground-live.png")
    context.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / "hold").touch()
        with serve(Path(temporary), "support.streamed:app") as server, launch_browser() as browser:
            take_live(browser, server)
            take(browser, server, "light", "light", DESKTOP, is_generating=True)
            take(browser, server, "dark", "dark", DESKTOP)
            take(browser, server, "phone", "light", PHONE, scale=1.5)


if __name__ == "__main__":
    main()
