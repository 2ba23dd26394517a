"""The playground in a browser: opens it, records what it plays, and watches for errors and requests elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import soundfile
from numpy.typing import NDArray
from playwright.sync_api import Browser, Locator, Page, expect

from support.served import wait_until

STREAMED = "support.streamed:app"
Samples: TypeAlias = NDArray[np.float32]

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


FADE_FRAMES = 320  # 10 ms
SHORTEST_PAUSE_FRAMES = 16


def assert_is_played(heard: Samples, samples: Samples) -> int:
    """Compare the audio that was played with a file; return how often it paused.

    While audio is missing, the page plays silence. Before and after that, and where audio nearly is missing, it fades.
    Nothing else may differ: no sample is left out, repeated or louder.
    """
    # Chromium's decoder divides positive samples by 32,767 and negative ones by 32,768.
    step = 1 / 32_768
    samples = np.trim_zeros(samples)
    played, num_pauses = _without_pauses(heard, samples)
    assert len(samples) - len(played) in (0, 1)  # a fade at the end ends with a sample that is 0
    samples = samples[: len(played)]
    is_faded = np.abs(played - samples) > step
    audible = is_faded & (np.abs(samples) > 0.02)
    gains = played[audible] / samples[audible]
    assert ((gains >= -0.01) & (gains <= 1.01)).all()
    steps = np.diff(gains) / np.diff(np.flatnonzero(audible))
    assert (np.abs(steps) <= 2 / FADE_FRAMES + 2 * step / 0.02).all()
    assert is_faded.mean() < 0.25
    return num_pauses


def _without_pauses(heard: Samples, samples: Samples) -> tuple[Samples, int]:
    """Remove the silence that the file does not have; return the rest, and how often there was any."""
    edges = np.flatnonzero(np.diff(np.r_[False, heard == 0, False].astype(int))).reshape(-1, 2)
    parts, first, num_removed = [], 0, 0
    for start, end in edges[edges[:, 1] - edges[:, 0] >= SHORTEST_PAUSE_FRAMES]:
        # A fade ends with a sample that is 0, beside which the file may have zeros. What follows tells how many.
        num_own = min(
            [0, 1, 2, 3, end - start], key=lambda own: _distance(heard[end:], samples[start - num_removed + own :])
        )
        if num_own < end - start:
            parts.append(heard[first : start + num_own])
            first, num_removed = end, num_removed + end - start - num_own
    return np.concatenate([*parts, heard[first:]]), len(parts)


def _distance(heard: Samples, samples: Samples) -> float:
    """Compare a little of what follows the next fade."""
    length = min(len(heard), len(samples), 3 * FADE_FRAMES)
    return float(np.abs(heard[FADE_FRAMES:length] - samples[FADE_FRAMES:length]).sum())


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

    def link(self, card: Locator) -> str:
        """Return what "Copy link" copies."""
        self.page.evaluate(
            "() => Object.defineProperty(navigator.clipboard, 'writeText', {value: (t) => (window.copied = t)})"
        )
        self.choose(card, "Copy link")
        return str(self.page.evaluate("() => window.copied"))

    def recorded(self) -> Samples:
        """Return the first channel of what was played, without the silence before and after."""
        blocks = self.page.evaluate("() => window.recorded.map((block) => Array.from(block))")
        samples = np.array([sample for block in blocks for sample in block], np.float32)
        (sounding,) = np.nonzero(samples)
        return samples[sounding[0] : sounding[-1] + 1] if sounding.size else samples[:0]

    def downloaded(self, prompt: str) -> Samples:
        """Download a clip; return its first channel."""
        with self.page.expect_download() as download:
            self.clip(prompt).get_by_role("button", name="Download", exact=True).click()
        samples: Samples = soundfile.read(Path(download.value.path()), dtype="float32", always_2d=True)[0][:, 0]
        return samples

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
