import {ApiError, connectionLost} from "./api.js";
import {deinterleave} from "./pcm.js";

const REPORT_MILLISECONDS = 400;
const [ATTEMPTS, ATTEMPT_MILLISECONDS] = [3, 500];

/**
 * A performance over `/ws/live`. It dispatches `audio` for every block, `seek` with the `frame` from which the audio
 * goes on, `answer` with a `message` of the server and the `note` of the change that it is about, and at the end
 * `ended` or `failed`.
 */
export class LiveSession extends EventTarget {
  #socket;
  #notes = new Map(); // by ID of a message, what its sender wants to remember
  #nextId = 1;
  #timer = null;
  blocks = []; // everything that was played, and is not taken back
  audio = null; // {channels, sampleRate}
  info = null; // the `started` message
  error = null;
  ended = null; // the `ended` message
  performance = null;

  /** `start` has the fields of the first message; `position()` returns how many seconds were heard. */
  constructor(api, start, position) {
    super();
    this.api = api;
    this.#socket = api.openSocket("ws/live");
    this.#socket.binaryType = "arraybuffer";
    this.#socket.onopen = () => this.#socket.send(JSON.stringify({type: "start", ...start}));
    this.#socket.onmessage = ({data}) => (typeof data === "string" ? this.#onText(data) : this.#onAudio(data));
    this.#socket.onclose = () => this.#onClose();
    this.#timer = setInterval(() => this.#report(position()), REPORT_MILLISECONDS);
  }

  /** Seconds of the performance that have arrived. */
  get duration() {
    const samples = this.blocks.reduce((sum, block) => sum + block[0].length, 0);
    return this.audio ? samples / this.audio.sampleRate : 0;
  }

  /** Send a message; the `answer` to it has the `note`. */
  send(message, note = null) {
    const id = String(this.#nextId++);
    this.#notes.set(id, note);
    if (this.#socket.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify({...message, id}));
  }

  stop() {
    this.send({type: "stop"});
  }

  #report(position) {
    if (this.info && !this.ended && this.#socket.readyState === WebSocket.OPEN) {
      this.#socket.send(JSON.stringify({type: "playback", position: Math.min(position, this.duration)}));
    }
  }

  #onText(text) {
    const message = JSON.parse(text);
    if (message.type === "started") {
      this.info = message;
      this.audio = {channels: message.channels, sampleRate: message.sample_rate};
    } else if (message.type === "ended") this.ended = message;
    else if (message.type === "error") this.error = new ApiError(message);
    if (message.type === "applied" && message.to === "seek_back") this.#takeBack(message.frame);
    this.#emit("answer", {message, note: this.#notes.get(message.id) ?? null});
    this.#notes.delete(message.id);
  }

  #onAudio(data) {
    const block = deinterleave(new DataView(data), this.audio.channels);
    this.blocks.push(block);
    this.#emit("audio", {block});
  }

  /** Keep what was played before a frame. */
  #takeBack(frame) {
    let left = Math.round((frame * this.audio.sampleRate) / this.info.frame_rate);
    this.blocks = this.blocks
      .map((block) => {
        const kept = block.map((channel) => channel.subarray(0, left));
        left -= kept[0].length;
        return kept;
      })
      .filter(([channel]) => channel.length);
    this.#emit("seek", {frame});
  }

  async #onClose() {
    clearInterval(this.#timer);
    if (!this.ended && !this.error) this.error = this.info ? connectionLost(" while it played") : notOpened();
    const id = this.ended ? this.ended.performance : this.info?.performance;
    if (id) this.performance = await this.#findPerformance(id);
    this.#emit(this.error ? "failed" : "ended");
  }

  /** Return the performance; null without one. After a lost connection, it may take the server a while to keep it. */
  async #findPerformance(id) {
    for (let attempt = 1; ; attempt++) {
      const found = await this.api.json(`performances/${id}`).catch(() => null);
      if (found || this.ended || attempt === ATTEMPTS) return found;
      await new Promise((resolve) => setTimeout(resolve, ATTEMPT_MILLISECONDS));
    }
  }

  #emit(type, details = {}) {
    this.dispatchEvent(Object.assign(new Event(type), details));
  }
}

/** Browsers do not say why a WebSocket was refused. */
const notOpened = () =>
  new ApiError({
    error: "The server did not open a live session. It may be busy, or need an API key. Try again soon.",
    code: "unavailable",
  });
