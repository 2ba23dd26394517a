// Options of this client that are not fields of a request.
const CALL_OPTIONS = new Set(["melody", "audio", "signal", "onProgress", "pollInterval", "idempotencyKey"]);
const RENAMED = {format: "output_format"};

/** Returns the fields of a request: `modelSize` becomes `model_size`, `format` becomes `output_format`. */
export function fieldsOf(prompt, options) {
  return renamed({prompt, ...Object.fromEntries(Object.entries(options).filter(([name]) => !CALL_OPTIONS.has(name)))});
}

function renamed(value) {
  if (Array.isArray(value)) return value.map(renamed);
  if (typeof value !== "object") return value;
  const given = Object.entries(value).filter(([, field]) => field !== undefined && field !== null);
  return Object.fromEntries(given.map(([name, field]) => [RENAMED[name] ?? snakeCase(name), renamed(field)]));
}

function snakeCase(name) {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

/** Returns the path, body and headers of a request. A melody, also of notes, or audio to continue makes it a form. */
export function generation(path, prompt, options) {
  const fields = fieldsOf(prompt, options);
  const files = {audio: options.audio, melody: options.melody};
  const uploads = Object.entries(files).filter(([, file]) => file !== undefined);
  if (uploads.length === 0 && fields.notes === undefined) {
    return {path, body: JSON.stringify(fields), headers: {"Content-Type": "application/json"}};
  }
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) form.set(name, String(value));
  for (const [name, file] of uploads) form.set(name, file instanceof Blob ? file : new Blob([file]), file.name ?? name);
  const route = options.audio === undefined ? "/generate-with-melody" : "/generate-continuation";
  return {path: path.replace("/generate", route), body: form, headers: {}};
}

/** Returns a random key. `crypto.randomUUID` does not exist on pages that are served over plain HTTP. */
export function newIdempotencyKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
