import {generation, newIdempotencyKey} from "./fields.js";
import {readBody, sleep} from "./http.js";
import {createError} from "./responses.js";

const POLL_MILLISECONDS = 1000;

/** Tasks: generations that the server runs while nobody waits. */
export class Tasks {
  #http;

  constructor(http) {
    this.#http = http;
  }

  /** Submits a task. A repeated submission with the same `idempotencyKey` returns the same task. */
  submit(prompt, options = {}) {
    const {path, body, headers} = generation("/generate-async", prompt, options);
    const key = options.idempotencyKey ?? newIdempotencyKey();
    return this.#http.json("POST", path, {body, headers: {...headers, "Idempotency-Key": key}, signal: options.signal});
  }

  get(id, {signal} = {}) {
    return this.#http.json("GET", pathOf(id), {signal});
  }

  /** Polls a task until it is completed. Throws the error of a failed task, or a `CanceledError`. */
  async wait(id, {signal, onProgress, pollInterval = POLL_MILLISECONDS} = {}) {
    for (;;) {
      const task = await this.get(id, {signal});
      onProgress?.(task);
      if (task.status === "completed") return task;
      if (task.status !== "processing") {
        throw createError(task.error ?? "The task was canceled.", {code: task.code ?? task.status});
      }
      await sleep(pollInterval, signal);
    }
  }

  /** Cancels a task: a queued one at once, a running one after its current step. A finished task does not change. */
  cancel(id, {signal} = {}) {
    return this.#http.json("DELETE", pathOf(id), {signal});
  }

  /** Returns a page of tasks, newest first. */
  list({limit, cursor, signal} = {}) {
    const query = new URLSearchParams(Object.entries({limit, cursor}).filter(([, value]) => value != null));
    return this.#http.json("GET", query.size ? `/tasks?${query}` : "/tasks", {signal});
  }

  /** Yields the task after each change, and last its final state. Reconnects when the connection ends. */
  async *events(id, {signal} = {}) {
    let lastId;
    for (;;) {
      const headers = lastId === undefined ? {} : {"Last-Event-ID": lastId};
      const response = await this.#http.send("GET", `${pathOf(id)}/events`, {headers, signal});
      if (response.status === 204) return;
      let retry = POLL_MILLISECONDS;
      for await (const event of eventsOf(response, signal)) {
        retry = event.retry ?? retry;
        if (event.data === undefined) continue;
        lastId = event.id;
        const task = JSON.parse(event.data);
        yield task;
        if (task.status !== "processing") return;
      }
      await sleep(retry, signal);
    }
  }
}

function pathOf(id) {
  return `/tasks/${encodeURIComponent(id)}`;
}

/** Yields the events of a response as `{id, data, retry}`; ends with the connection. */
async function* eventsOf(response, signal) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const {done, value} = await readBody(response, () => reader.read(), signal);
      if (done) return;
      const blocks = (text + value).split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const fields = block.split("\n").map((line) => line.match(/^(id|data|retry): (.*)$/)?.slice(1)).filter(Boolean);
        const {retry, ...event} = Object.fromEntries(fields);
        yield {...event, ...(retry && {retry: Number(retry)})};
      }
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}
