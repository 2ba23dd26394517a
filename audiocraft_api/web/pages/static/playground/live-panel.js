import {firstChoice, KEYS} from "./controls.js";
import {button, byId, element, setIcon} from "./dom.js";
import {clock} from "./format.js";
import {LivePrompts} from "./live-prompts.js";

const START_ROWS = [
  {text: "lo-fi hip hop, electric piano, slow", weight: 100},
  {text: "techno, synth arpeggio, fast", weight: 0},
];
const SEND_MILLISECONDS = 250; // a slider changes many times a second
const SAMPLING = ["cfg_coef", "temperature", "top_k"]; // `live-` and the name is the ID of the input
const WORDS = ["bpm", "key"];

/**
 * The form of the Live tab. It dispatches `start`, `prompts`, `config` with the changed `fields`, `transition`,
 * `pause`, `stop`, `reset` and `back` with the `entry` of the list of changes to go back to.
 */
export class LivePanel extends EventTarget {
  #sent = {};
  #timer = null;
  #entries = [];
  prompts = new LivePrompts();

  constructor() {
    super();
    this.form = byId("live-form");
    this.model = byId("live-model");
    this.pause = byId("live-pause");
    this.log = byId("live-log");
    this.prompts.rows = START_ROWS;
    byId("live-key").append(...KEYS.map((key) => element("option", {value: key, textContent: key})));
    this.form.addEventListener("submit", (event) => this.#onSubmit(event));
    this.prompts.addEventListener("change", () => this.#later());
    for (const name of [...SAMPLING, ...WORDS]) byId(`live-${name}`).addEventListener("input", () => this.#later());
    byId("live-transition").addEventListener("input", () => this.#later());
    for (const name of ["pause", "stop", "reset"]) {
      byId(`live-${name}`).addEventListener("click", () => this.dispatchEvent(new Event(name)));
    }
    this.#showValues();
    this.setState("idle");
  }

  /** Offer the models that can play live. */
  setModels(models) {
    const able = models.filter(({controls}) => controls.live);
    const chosen = firstChoice(able, this.model.value);
    this.model.replaceChildren(...able.map(({name}) => element("option", {value: name, textContent: name})));
    this.model.value = chosen ?? "";
    const limits = able.find(({name}) => name === chosen)?.controls.live;
    if (limits) {
      this.prompts.maxRows = limits.max_prompts;
      byId("live-transition").max = Math.min(10, limits.max_transition);
    }
    byId("live-start").disabled = !chosen;
    this.setProblem(models.length && !chosen ? "No model of this server can play live." : "");
  }

  /** The fields of the first message. */
  get fields() {
    const {cfg_coef, temperature, top_k, bpm, key} = this.#controls;
    const fields = {model_size: this.model.value, prompts: this.prompts.value, transition: this.#transition};
    Object.assign(fields, {cfg_coef, temperature, top_k}, bpm && {bpm}, key && {key});
    const seed = byId("live-seed").value;
    return seed === "" ? fields : {...fields, seed: Number(seed)};
  }

  /** Everything that a change can set, to be restored with `restore`. */
  get snapshot() {
    return {rows: this.prompts.rows, listener: this.prompts.listener, controls: this.#controls};
  }

  /** Fill in the prompts and controls of another time. They are sent if the server does not know them. */
  restore({rows, listener = null, controls}) {
    if (listener) this.prompts.listener = listener;
    this.prompts.rows = rows;
    for (const [name, value] of Object.entries(controls)) byId(`live-${name}`).value = value ?? "";
    this.#later();
  }

  /** Take what is filled in for what the server knows. */
  markSent() {
    this.#sent = {prompts: JSON.stringify(this.prompts.value), transition: this.#transition, ...this.#controls};
  }

  /** `state` is idle, starting, playing, paused or ending. */
  setState(state) {
    const isOn = state !== "idle";
    const begins = state === "playing" && this.form.dataset.state === "starting";
    this.form.dataset.state = state;
    byId("live-start").hidden = isOn;
    byId("live-buttons").hidden = !isOn;
    for (const name of ["model", "seed"]) byId(`live-${name}`).disabled = isOn;
    for (const name of ["pause", "reset"]) {
      byId(`live-${name}`).disabled = !["playing", "paused"].includes(state);
    }
    byId("live-stop").disabled = state === "ending";
    for (const back of this.log.querySelectorAll("button")) back.hidden = !isOn;
    setIcon(this.pause, state === "paused" ? "play" : "pause");
    this.pause.querySelector("span").textContent = state === "paused" ? "Go on" : "Pause";
    if (begins) this.#flush(); // what was changed while the server prepared
  }

  setProblem(text) {
    byId("live-problem").textContent = text;
  }

  setStatus(text) {
    byId("live-status").textContent = text;
  }

  /** Show which change holds from which frame on. */
  addEntry(frame, seconds, {text, snapshot}) {
    const entry = {frame, snapshot};
    const back = () => this.dispatchEvent(Object.assign(new Event("back"), {entry}));
    entry.element = element(
      "li",
      {},
      element("span", {className: "live-time", textContent: clock(seconds)}),
      element("span", {textContent: text}),
      button("Back to here", back, {className: "link", "aria-label": `Back to here: ${clock(seconds)}, ${text}`}),
    );
    this.#entries.push(entry);
    this.log.append(entry.element);
    this.log.scrollTop = this.log.scrollHeight;
    byId("live-changes").hidden = false;
    return entry;
  }

  /** Forget the changes after a frame. */
  dropEntries(frame) {
    for (const entry of this.#entries) if (entry.frame > frame) entry.element.remove();
    this.#entries = this.#entries.filter((entry) => entry.frame <= frame);
  }

  clearEntries() {
    this.dropEntries(-1);
    byId("live-changes").hidden = true;
  }

  get #controls() {
    const number = (name) => Number(byId(`live-${name}`).value);
    const sampling = Object.fromEntries(SAMPLING.map((name) => [name, number(name)]));
    return {...sampling, bpm: number("bpm") || null, key: byId("live-key").value || null};
  }

  get #transition() {
    return Number(byId("live-transition").value);
  }

  #showValues() {
    byId("live-transition-value").textContent = this.#transition ? `${this.#transition} s` : "at once";
    for (const name of ["cfg_coef", "temperature"]) {
      byId(`live-${name}-value`).textContent = byId(`live-${name}`).value;
    }
  }

  #onSubmit(event) {
    event.preventDefault();
    this.#flush(); // Enter in a text while it plays sends the text
    if (this.form.dataset.state !== "idle" || byId("live-start").disabled) return;
    this.setProblem(this.prompts.problem);
    if (!this.prompts.problem) this.dispatchEvent(new Event("start"));
  }

  #later() {
    this.#showValues();
    this.#timer ??= setTimeout(() => this.#flush(), SEND_MILLISECONDS);
  }

  /** Send what differs from what the server knows. */
  #flush() {
    clearTimeout(this.#timer);
    this.#timer = null;
    if (!["playing", "paused"].includes(this.form.dataset.state)) return;
    const isValid = this.form.checkValidity();
    this.setProblem(this.prompts.problem || (isValid ? "" : "A value is outside its range."));
    if (this.prompts.problem || !isValid) return;
    const before = this.#sent;
    this.markSent();
    const changed = (name) => this.#sent[name] !== before[name];
    if (changed("transition")) this.dispatchEvent(new Event("transition"));
    if (changed("prompts")) this.dispatchEvent(new Event("prompts"));
    const fields = Object.fromEntries([...SAMPLING, ...WORDS].filter(changed).map((name) => [name, this.#sent[name]]));
    if (Object.keys(fields).length) this.dispatchEvent(Object.assign(new Event("config"), {fields}));
  }
}
