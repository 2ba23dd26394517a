import {generation} from "./fields.js";
import {Http, readBody} from "./http.js";
import {LiveSession} from "./live.js";
import {AudioStream} from "./stream.js";
import {Tasks} from "./tasks.js";

const pathOf = (audio) => (typeof audio === "string" ? audio : audio.audio_url);

/** A client of one server. */
export class AudioCraft {
  #http;

  constructor({baseUrl = globalThis.location?.origin ?? "http://localhost:5000", ...options} = {}) {
    this.#http = new Http({baseUrl, ...options});
    this.tasks = new Tasks(this.#http);
  }

  /** Generates audio and waits for it. */
  generateAudio(prompt, options = {}) {
    const {path, body, headers} = generation("/generate", prompt, options);
    return this.#http.json("POST", path, {body, headers, signal: options.signal});
  }

  /** Generates audio as a task and polls until it is completed. Aborting `signal` cancels the task. */
  async generateAudioAsync(prompt, options = {}) {
    const {task_id: id} = await this.tasks.submit(prompt, options);
    try {
      return await this.tasks.wait(id, options);
    } catch (error) {
      if (options.signal?.aborted) await this.tasks.cancel(id).catch(() => {});
      throw error;
    }
  }

  /** Generates audio and receives it while it is generated. Resolves with the first audio. */
  async stream(prompt, options = {}) {
    if ((options.melody ?? options.notes) !== undefined) {
      throw new TypeError("A stream cannot follow a melody. Use generateAudio.");
    }
    if (options.audio !== undefined) throw new TypeError("A stream continues no upload. Use generateAudio.");
    const {path, body, headers} = generation("/generate-stream", prompt, options);
    const response = await this.#http.send("POST", path, {body, headers, signal: options.signal});
    return new AudioStream(response, options.signal);
  }

  /** Generates audio that is changed while it is generated. Resolves when it begins. */
  live(prompts, options = {}) {
    return LiveSession.open(() => this.#http.openSocket("/ws/live"), prompts, options);
  }

  /** Returns what was played in a live session, for the field `performance` of a request. */
  performance(id, {signal} = {}) {
    return this.#http.json("GET", `/performances/${encodeURIComponent(id)}`, {signal});
  }

  /** Returns the absolute URL of the audio of a result or a task, or of a stem, such as `result.stems.drums`. */
  audioUrl(audio) {
    return this.#http.url(pathOf(audio));
  }

  /** Downloads the audio of a result or a task, or a stem, with the key that an `<audio>` element cannot send. */
  async download(audio, {signal} = {}) {
    const response = await this.#http.send("GET", pathOf(audio), {signal});
    return readBody(response, () => response.blob(), signal);
  }

  /** Lists the models. */
  async models({signal} = {}) {
    return (await this.#http.json("GET", "/models", {signal})).models;
  }

  /** Begins to load a model; `models` has the progress. */
  loadModel(name, {signal} = {}) {
    return this.#http.json("POST", `/models/${encodeURIComponent(name)}/load`, {signal});
  }

  /** Unloads a model: once no request uses it, or only if none does. */
  unloadModel(name, {whenBusy = "wait", signal} = {}) {
    const path = `/models/${encodeURIComponent(name)}/unload?when_busy=${encodeURIComponent(whenBusy)}`;
    return this.#http.json("POST", path, {signal});
  }

  health({signal} = {}) {
    return this.#http.json("GET", "/health", {signal});
  }
}
