// Options of this client that are not fields of a request.
const CALL_OPTIONS = new Set(["melody", "signal", "onProgress", "pollInterval", "idempotencyKey"]);
const RENAMED = {format: "output_format"};

/** Returns the fields of a request: `modelSize` becomes `model_size`, `format` becomes `output_format`. */
export function fieldsOf(prompt, options) {
  const fields = {prompt};
  for (const [name, value] of Object.entries(options)) {
    if (value === undefined || value === null || CALL_OPTIONS.has(name)) continue;
    fields[RENAMED[name] ?? name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)] = value;
  }
  return fields;
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
