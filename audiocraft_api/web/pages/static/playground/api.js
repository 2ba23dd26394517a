import {RateLimits} from "./rate-limits.js";

/** An error response of the server, or the reason why there was none. */
export class ApiError extends Error {
  constructor({error, code = "", status = 0, retry_after = null, suggestion = null, errors = null}) {
    super(error);
    this.code = code;
    this.status = status;
    this.retryAfter = retry_after === null ? null : Number(retry_after);
    this.suggestion = suggestion;
    this.fields = errors;
  }
}

/** The client did not reach the server. */
export const connectionLost = (during = "") =>
  new ApiError({error: `The connection to the server was lost${during}.`, code: "connection_lost", retry_after: 5});

/** Calls the server that this page came from, with the caller's key if there is one. */
export class Api {
  constructor(base, key = () => null) {
    this.base = base;
    this.key = key;
    this.limits = new RateLimits();
  }

  /** Send a request. Throws ApiError for every response that is not a success, and when there is none. */
  async fetch(path, {headers = {}, ...options} = {}) {
    const key = this.key();
    let response;
    try {
      response = await fetch(new URL(path.replace(/^\//, ""), this.base), {
        ...options,
        headers: key ? {...headers, "X-API-Key": key} : headers,
      });
    } catch (error) {
      if (options.signal?.aborted) throw error;
      throw connectionLost();
    }
    this.limits.read(response.headers);
    if (!response.ok) throw await errorOf(response);
    return response;
  }

  async json(path, options) {
    return (await this.fetch(path, options)).json();
  }

  postJson(path, fields, options = {}) {
    const headers = {"Content-Type": "application/json", ...options.headers};
    return this.fetch(path, {method: "POST", body: JSON.stringify(fields), ...options, headers});
  }

  async models() {
    return (await this.json("models")).models.filter((model) => model.allowed);
  }

  /** Open the WebSocket of a path, with the key as a subprotocol, because a page cannot set its headers. */
  openSocket(path) {
    const url = new URL(path, this.base);
    url.protocol = url.protocol.replace("http", "ws");
    const key = this.key();
    return key ? new WebSocket(url, ["audiocraft-api", `audiocraft-api-key.${key}`]) : new WebSocket(url);
  }
}

async function errorOf(response) {
  const {status} = response;
  const retry_after = response.headers.get("Retry-After");
  try {
    const body = await response.json();
    if (typeof body.error === "string") return new ApiError({status, retry_after, ...body});
  } catch {
    // A proxy responded, with a page of its own.
  }
  return new ApiError({error: `The server responded with status ${status}.`, status, retry_after});
}
