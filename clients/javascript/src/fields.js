// Options of this client that are not fields of a request.
const CALL_OPTIONS = new Set(["melody", "signal", "onProgress", "pollInterval", "idempotencyKey"]);
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

/** Returns the path, body and headers of a request that generates audio. A melody makes the body a form. */
export function generation(path, prompt, options) {
  const fields = fieldsOf(prompt, options);
  if (options.melody === undefined) {
    return {path, body: JSON.stringify(fields), headers: {"Content-Type": "application/json"}};
  }
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) form.set(name, String(value));
  const {melody} = options;
  form.set("melody", melody instanceof Blob ? melody : new Blob([melody]), melody.name ?? "melody");
  return {path: path.replace("/generate", "/generate-with-melody"), body: form, headers: {}};
}

/** Returns a random key. `crypto.randomUUID` does not exist on pages that are served over plain HTTP. */
export function newIdempotencyKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
