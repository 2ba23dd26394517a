import {element} from "./dom.js";
import {inWords} from "./format.js";

const BAR = 3; // CSS pixels of a bar and its gap
const STEP_SECONDS = 1;
const REGION_STEP_SECONDS = 0.1;

/** A clip's waveform: a slider for the position, with an optional region whose ends are sliders as well. */
export class Waveform {
  #canvas = element("canvas", {"aria-hidden": "true"});
  #handles = [];
  #peaks = [];
  #filled = 1;
  #region = null;
  #position = 0;
  #duration;
  #frame = null;

  /** `onseek(seconds)` and `onregion([start, end])` are called when the user moves something. */
  constructor({label, duration, onseek, onregion}) {
    this.#duration = duration;
    this.onseek = onseek;
    this.onregion = onregion;
    this.slider = element(
      "div",
      {className: "wave-slider", role: "slider", tabIndex: 0, "aria-label": label},
      this.#canvas,
    );
    this.element = element("div", {className: "waveform"}, this.slider);
    this.slider.addEventListener("pointerdown", (event) => this.#scrub(event));
    this.slider.addEventListener("keydown", (event) => this.#onKey(event));
    new ResizeObserver(() => this.#draw()).observe(this.element);
    this.setDuration(duration);
  }

  setDuration(duration) {
    this.#duration = duration;
    this.slider.setAttribute("aria-valuemin", "0");
    this.slider.setAttribute("aria-valuemax", duration.toFixed(1));
    this.setPosition(this.#position);
  }

  /** Show peaks, 0 to 100, of which the part `filled` has arrived. */
  setPeaks(peaks, filled = 1) {
    this.#peaks = peaks;
    this.#filled = filled;
    this.slider.classList.toggle("growing", filled < 1);
    this.#draw();
  }

  setPosition(seconds) {
    if (seconds === this.#position && this.slider.hasAttribute("aria-valuenow")) return;
    this.#position = seconds;
    this.slider.setAttribute("aria-valuenow", seconds.toFixed(1));
    this.slider.setAttribute("aria-valuetext", `${inWords(Math.floor(seconds))} of ${inWords(this.#duration)}`);
    this.#draw();
  }

  setDisabled(disabled) {
    this.slider.setAttribute("aria-disabled", String(disabled));
    this.disabled = disabled;
  }

  /** Show the handles of a region, [start, end] in seconds, or with null none. */
  setRegion(region) {
    this.#region = region;
    if (region && !this.#handles.length) {
      this.#handles = ["Start", "End"].map((name, index) => this.#handle(name, index));
      this.element.append(...this.#handles);
    }
    if (!region) this.#handles.splice(0).forEach((handle) => handle.remove());
    this.#handles.forEach((handle, index) => {
      handle.style.left = `${(100 * region[index]) / this.#duration}%`;
      handle.setAttribute("aria-valuemax", this.#duration.toFixed(1));
      handle.setAttribute("aria-valuenow", region[index].toFixed(1));
      handle.setAttribute("aria-valuetext", inWords(region[index]));
    });
    this.#draw();
  }

  #handle(name, index) {
    const handle = element("div", {
      className: `handle handle-${name.toLowerCase()}`,
      role: "slider",
      tabIndex: 0,
      "aria-label": `${name} of the region`,
      "aria-valuemin": "0",
    });
    const move = (seconds) => {
      const region = [...this.#region];
      const gap = Math.min(0.5, this.#duration);
      const [low, high] = index ? [region[0] + gap, this.#duration] : [0, region[1] - gap];
      region[index] = Math.max(low, Math.min(high, seconds));
      this.setRegion(region);
      this.onregion?.(region);
    };
    handle.addEventListener("pointerdown", (event) => this.#drag(event, handle, move));
    handle.addEventListener("keydown", (event) => {
      const direction = {ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1}[event.key];
      if (!direction) return;
      event.preventDefault();
      event.stopPropagation();
      move(this.#region[index] + direction * REGION_STEP_SECONDS);
    });
    return handle;
  }

  #scrub(event) {
    if (this.disabled) return;
    const move = (seconds) => this.onseek(seconds);
    move(this.#secondsAt(event));
    this.#drag(event, this.slider, move);
  }

  #drag(event, target, move) {
    event.stopPropagation();
    target.setPointerCapture(event.pointerId);
    const onmove = (moved) => move(this.#secondsAt(moved));
    target.addEventListener("pointermove", onmove);
    const stop = () => target.removeEventListener("pointermove", onmove);
    target.addEventListener("pointerup", stop, {once: true});
    target.addEventListener("pointercancel", stop, {once: true});
  }

  #secondsAt({clientX}) {
    const {left, width} = this.element.getBoundingClientRect();
    return this.#duration * Math.max(0, Math.min(1, (clientX - left) / width));
  }

  #onKey(event) {
    const to = {
      ArrowLeft: this.#position - STEP_SECONDS,
      ArrowDown: this.#position - STEP_SECONDS,
      ArrowRight: this.#position + STEP_SECONDS,
      ArrowUp: this.#position + STEP_SECONDS,
      Home: 0,
      End: this.#duration,
      PageUp: this.#position + 5,
      PageDown: this.#position - 5,
    }[event.key];
    if (to === undefined || this.disabled) return;
    event.preventDefault();
    event.stopPropagation();
    this.onseek(Math.max(0, Math.min(this.#duration, to)));
  }

  /** Draw once before the next frame, however much changes until then. */
  #draw() {
    this.#frame ??= requestAnimationFrame(() => {
      this.#frame = null;
      this.#drawNow();
    });
  }

  #drawNow() {
    const canvas = this.#canvas;
    const {clientWidth: width, clientHeight: height} = this.element;
    if (!width) return;
    const scale = devicePixelRatio;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
    }
    const style = getComputedStyle(this.element);
    const color = (name) => style.getPropertyValue(name);
    const colors = {played: color("--played"), wave: color("--wave"), faint: color("--wave-faint")};
    const context = canvas.getContext("2d");
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    this.#drawBars(context, width, height, colors);
  }

  #drawBars(context, width, height, colors) {
    const bars = Math.floor(width / BAR);
    const loudest = Math.max(20, ...this.#peaks);
    const [start, end] = this.#region ?? [0, this.#duration];
    for (let bar = 0; bar < bars; bar++) {
      const seconds = ((bar + 0.5) / bars) * this.#duration;
      const arrived = (bar + 1) / bars <= this.#filled + 1e-6;
      const size = arrived ? Math.max(2, (this.#peakAt(bar, bars) / loudest) * (height - 4)) : 2;
      const inRegion = seconds >= start && seconds <= end;
      const played = this.#position > 0 && seconds <= this.#position;
      context.fillStyle = !arrived || !inRegion ? colors.faint : played ? colors.played : colors.wave;
      context.beginPath();
      context.roundRect(bar * BAR, (height - size) / 2, BAR - 1, size, 1);
      context.fill();
    }
  }

  #peakAt(bar, bars) {
    const count = this.#peaks.length;
    if (!count) return 0;
    const from = Math.floor((bar * count) / bars);
    const to = Math.max(from + 1, Math.floor(((bar + 1) * count) / bars));
    return Math.max(...this.#peaks.slice(from, to));
  }
}
