import {ApiError, connectionLost} from "./api.js";

const POLL_MILLISECONDS = 700;
const LOST_POLLS = 20;

/** Generate with a task, and poll it until it has finished. `request` is JSON fields or a form. Throws ApiError. */
export async function runTask(api, path, request, on, signal) {
  const response =
    request instanceof FormData
      ? await api.fetch(path, {method: "POST", body: request, signal})
      : await api.postJson(path, request, {signal});
  const {task_id: id, seed} = await response.json();
  on.accepted?.({seed});
  const cancel = () => api.fetch(`tasks/${id}`, {method: "DELETE", keepalive: true}).catch(() => {});
  signal?.addEventListener("abort", cancel, {once: true});
  try {
    return await follow(api, id, on, signal);
  } finally {
    signal?.removeEventListener("abort", cancel);
  }
}

async function follow(api, id, on, signal) {
  for (let lost = 0; ;) {
    await pause(POLL_MILLISECONDS, signal);
    let task;
    try {
      task = await api.json(`tasks/${id}`, {signal});
      lost = 0;
    } catch (error) {
      if (signal?.aborted) throw signal.reason;
      if (error.code !== "connection_lost" && error.status !== 503) throw error;
      if (++lost > LOST_POLLS) throw connectionLost();
      continue;
    }
    if (task.status === "completed") return {...task.result, audio_url: task.audio_url};
    if (task.status !== "processing") throw failureOf(task);
    if (task.queue_position) on.waiting?.({position: task.queue_position, eta: task.eta_seconds});
    else on.progress?.({current: task.current, total: task.total, eta: task.eta_seconds});
  }
}

function failureOf({status, error, code}) {
  if (status === "canceled") return new DOMException("The task was canceled.", "AbortError");
  return new ApiError({error, code, status: 500});
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), {once: true});
  });
}

/** Run a request as a task. If the server has deleted the audio that it continues, upload the page's copy of it. */
export async function runRequest(api, request, on, signal) {
  try {
    return await runTask(api, ...taskRequest(request), on, signal);
  } catch (error) {
    if (!request.source?.url || (error.status !== 404 && error.status !== 410)) throw error;
    return runTask(api, ...taskRequest({...request, source: {...request.source, url: null}}), on, signal);
  }
}

/** Return the path and the body of a request: fields, or a form if something is uploaded or notes are followed. */
function taskRequest({fields, melody, source}) {
  if (source?.url) return ["generate-async", {...fields, continue_from: {audio_url: source.url, end: source.end}}];
  if (!source && !melody && !fields.notes) return ["generate-async", fields];
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) form.append(name, String(value));
  if (source) {
    if (source.end !== null) form.append("end", String(source.end));
    form.append("audio", source.blob, source.name);
    return ["generate-continuation-async", form];
  }
  if (melody) form.append("melody", melody.blob, melody.name);
  return ["generate-with-melody-async", form];
}
