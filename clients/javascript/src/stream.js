import {readBody} from "./http.js";

/** Audio that arrives while it is generated: iterate over it, or read it whole. */
export class AudioStream {
  #response;
  #signal;

  constructor(response, signal) {
    const header = (name) => response.headers.get(`X-Audio-${name}`);
    this.#response = response;
    this.#signal = signal;
    this.seed = Number(header("Seed"));
    this.model = header("Model");
    this.revision = header("Revision");
    this.sampleRate = Number(header("Sample-Rate"));
    this.duration = Number(header("Duration"));
    this.mediaType = response.headers.get("Content-Type");
    this.requestId = response.headers.get("X-Request-ID");
  }

  /** The bytes as a web stream, for `MediaSource`, `Response` or `pipeTo`. */
  get body() {
    return this.#response.body;
  }

  /** Reads the rest of the audio. */
  blob() {
    return readBody(this.#response, () => this.#response.blob(), this.#signal);
  }

  /** Yields the bytes as they arrive. Leaving the loop stops the generation. */
  async *[Symbol.asyncIterator]() {
    const reader = this.#response.body.getReader();
    let ended = false;
    try {
      while (!ended) {
        const {done, value} = await readBody(this.#response, () => reader.read(), this.#signal);
        ended = done;
        if (!done) yield value;
      }
    } finally {
      if (!ended) await reader.cancel().catch(() => {});
    }
  }
}
