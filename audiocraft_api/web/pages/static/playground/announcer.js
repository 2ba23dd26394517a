const PROGRESS_MILLISECONDS = 5000;

/** Tells screen readers what happens: events at once, progress at most every 5 seconds. */
export class Announcer {
  #last = -Infinity;

  constructor(region) {
    this.region = region;
  }

  say(text) {
    this.region.textContent = text;
    this.#last = performance.now();
  }

  progress(text) {
    if (performance.now() - this.#last >= PROGRESS_MILLISECONDS) this.say(text);
  }
}
