import {ConnectionError} from "./errors.js";
import {errorOfResponse} from "./responses.js";

const RETRIED = new Set([429, 502, 503, 504]);
const FIRST_DELAY_MILLISECONDS = 500;

/** Sends requests: adds the key, turns failures into errors, and repeats what is safe to repeat. */
export class Http {
  #fetch;
  #headers;
  #maxRetries;
  #maxRetryAfter;
  #WebSocket;
  #protocols;

  constructor({
    baseUrl,
    apiKey,
    fetch = globalThis.fetch,
    WebSocket = globalThis.WebSocket,
    maxRetries = 2,
    maxRetryAfter = 60,
  }) {
    this.baseUrl = String(baseUrl).replace(/\/+$/, "");
    this.#fetch = fetch.bind(globalThis);
    // Not X-API-Key: a redirect to an object store must not carry the key, and fetch drops only this header.
    this.#headers = apiKey ? {Authorization: `Bearer ${apiKey}`} : {};
    this.#maxRetries = maxRetries;
    this.#maxRetryAfter = maxRetryAfter;
    this.#WebSocket = WebSocket;
    // A page cannot set the headers of a WebSocket.
    this.#protocols = apiKey ? ["audiocraft-api", `audiocraft-api-key.${apiKey}`] : [];
  }

  /** Returns the absolute URL of a path that the server sent. */
  url(path) {
    return path.startsWith("/") ? this.baseUrl + path : path;
  }

  /** Returns the JSON body of a response. */
  async json(method, path, options) {
    const response = await this.send(method, path, options);
    return readBody(response, () => response.json(), options?.signal);
  }

  /**
   * Returns a successful response; throws an `AudioCraftError` for any other. A POST is repeated only if it has an
   * idempotency key.
   */
  async send(method, path, {body, headers = {}, signal} = {}) {
    const repeatable = method !== "POST" || "Idempotency-Key" in headers;
    for (let attempt = 0; ; attempt++) {
      let error;
      try {
        const sent = {method, body, signal, headers: this.#headersFor(path, headers)};
        const response = await this.#fetch(this.url(path), sent);
        if (response.ok) return response;
        error = await errorOfResponse(response);
      } catch (cause) {
        signal?.throwIfAborted();
        const message = `The server at ${this.baseUrl} did not respond.`;
        error = new ConnectionError(message, {code: "connection_failed", cause});
      }
      const wait = error.retryAfter ?? (FIRST_DELAY_MILLISECONDS / 1000) * 2 ** attempt;
      const retried = error instanceof ConnectionError || RETRIED.has(error.status);
      if (!repeatable || !retried || attempt >= this.#maxRetries || wait > this.#maxRetryAfter) throw error;
      await sleep(wait * 1000, signal);
    }
  }

  /** Opens a WebSocket of this server. */
  openSocket(path) {
    if (!this.#WebSocket) {
      throw new TypeError("There is no WebSocket. Use Node 22 or later, or pass the option WebSocket.");
    }
    return new this.#WebSocket(this.url(path).replace(/^http/, "ws"), this.#protocols);
  }

  /** The key goes to this server only, not to other hosts that audio links may name. */
  #headersFor(path, headers) {
    return this.url(path).startsWith(`${this.baseUrl}/`) ? {...this.#headers, ...headers} : headers;
  }
}

/** Reads a body; throws a `ConnectionError` when the server closes the connection before its end. */
export async function readBody(response, read, signal) {
  try {
    return await read();
  } catch (cause) {
    signal?.throwIfAborted();
    const requestId = response.headers.get("X-Request-ID") ?? undefined;
    const message = "The server closed the connection before the end of the response.";
    throw new ConnectionError(message, {code: "connection_failed", requestId, cause});
  }
}

/** Resolves after a time; rejects with the reason of `signal` when it aborts. */
export function sleep(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, milliseconds);
    signal?.addEventListener("abort", stop, {once: true});
  });
}
