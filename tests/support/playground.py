"""The playground in a browser: opens it, records what it plays, and watches for errors and requests elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Browser, Locator, Page, expect

from support.served import wait_until

AXE = Path(__file__).parent.parent / "data" / "axe" / "axe.min.js"
TIMEOUT_MILLISECONDS = 15_000
# Errors that Chromium logs for every response that is not a success, and for a WebSocket that is refused.
EXPECTED_ERRORS = ("Failed to load resource", "WebSocket connection to")
# Everything that goes to the loudspeaker also goes to a recorder, which is an AudioWorklet like the page's own. Its
# module is a blob, because Playwright does not intercept the requests of worklets.
RECORD = """
window.recorded = [];
const recorderModule = URL.createObjectURL(new Blob([`
  registerProcessor("recorder", class extends AudioWorkletProcessor {
    process([channels]) {
      this.port.postMessage(channels.map((samples) => samples.slice()));
      return true;
    }
  });
`], {type: "text/javascript"}));
const destination = Object.getOwnPropertyDescriptor(BaseAudioContext.prototype, "destination");
const buses = new WeakMap();
Object.defineProperty(AudioContext.prototype, "destination", {get() {
  if (!buses.has(this)) {
    const bus = new GainNode(this);
    bus.connect(destination.get.call(this));
    this.audioWorklet.addModule(recorderModule).then(() => {
      const recorder = new AudioWorkletNode(this, "recorder");
      recorder.port.onmessage = ({data}) => data[0] && window.recorded.push(data[0]);
      bus.connect(recorder);
    });
    buses.set(this, bus);
  }
  return buses.get(this);
}});
"""


class Playground:
    """The page at `/`, ready for use."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.errors: list[str] = []
        self.requests: list[str] = []
        page.set_default_timeout(TIMEOUT_MILLISECONDS)
        expect.set_options(timeout=TIMEOUT_MILLISECONDS)
        page.on("console", lambda message: self._on_console(message.type, message.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def open(self, fragment: str = "") -> None:
        self.page.goto(self.url + "/" + fragment)
        expect(self.page.locator("html[data-ready=true]")).to_be_attached()

    def generate(self, prompt: str, **fields: Any) -> None:
        expect(self.page.locator("#generate")).to_be_enabled()
        self.page.get_by_label("Description of the music").fill(prompt)
        for name, value in fields.items():
            self.page.locator(f"#{name}").fill(str(value))
        self.page.keyboard.press("Control+Enter")

    def generate_clip(self, prompt: str, seconds: int = 1) -> Locator:
        """Generate a clip of 1 to 30 seconds, wait until it is finished, and return its card."""
        count = self.clips.count()
        self.generate(prompt, length=seconds - 1)
        expect(self.clips).to_have_count(count + 1)
        return self.clip(prompt)

    @property
    def form(self) -> Locator:
        """The form for clips; the Live tab has one of its own."""
        return self.page.locator("#clip-panel")

    @property
    def clips(self) -> Locator:
        return self.page.locator("article[data-clip]")

    @property
    def jobs(self) -> Locator:
        return self.page.locator("article.job")

    def clip(self, prompt: str) -> Locator:
        return self.clips.filter(has=self.page.get_by_role("heading", name=prompt, exact=True)).first

    def choose(self, card: Locator, action: str) -> None:
        """Choose an action from a card's menu."""
        card.get_by_label("More actions").click()
        card.get_by_role("button", name=action).click()

    def recorded(self) -> np.ndarray[Any, Any]:
        """Return the first channel of what was played, without the silence before and after."""
        blocks = self.page.evaluate("() => window.recorded.map((block) => Array.from(block))")
        samples = np.array([sample for block in blocks for sample in block], np.float32)
        (sounding,) = np.nonzero(samples)
        return samples[sounding[0] : sounding[-1] + 1] if sounding.size else samples[:0]

    def violations(self) -> list[str]:
        """Return the rules of axe that the page breaks, with the first element that breaks each."""
        self.page.evaluate(AXE.read_text() + ";0")
        found = self.page.evaluate("() => axe.run().then(({violations}) => violations)")
        return [f"{one['id']}: {one['nodes'][0]['html']} {one['nodes'][0]['failureSummary']}" for one in found]

    def wait_for_silence(self) -> None:
        wait_until(
            lambda: self.page.get_by_label("Player").get_by_role("button", name="Play", exact=True).count(), 30.0
        )

    def _on_console(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not text.startswith(EXPECTED_ERRORS):
            self.errors.append(text)


@contextmanager
def playground(browser: Browser, url: str, *, record: bool = False, **options: Any) -> Iterator[Playground]:
    """Open the page in a context of its own; at the end, check that it logged no error and stayed on its server."""
    context = browser.new_context(bypass_csp=record, **options)
    page = context.new_page()
    if record:
        page.add_init_script(RECORD)
    opened = Playground(page, url)
    try:
        yield opened
        assert not opened.errors
        assert not [sent for sent in opened.requests if not sent.startswith((url, "blob:", "data:"))]
    finally:
        context.close()
