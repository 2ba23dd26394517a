import {AudioCraftError, ERROR_CLASSES} from "./errors.js";

// For responses of proxies, which have no code.
const CODES_OF_STATUSES = {429: "limit_exceeded", 502: "unavailable", 503: "unavailable", 504: "deadline_exceeded"};

/** Returns an error of the class of its code; an unknown code is kept on a plain `AudioCraftError`. */
export function createError(message, details) {
  const Class = Object.hasOwn(ERROR_CLASSES, details.code) ? ERROR_CLASSES[details.code] : AudioCraftError;
  return new Class(message, details);
}

/** Returns the error that a response carries, also when a proxy and not the server made the response. */
export async function errorOfResponse(response) {
  const text = await response.text().catch(() => "");
  const body = parsed(text);
  const {error, request_id: requestId, errors, category, suggestion} = body;
  const retryAfter = Number(response.headers.get("Retry-After") ?? NaN);
  return createError(error ?? `The server responded with status ${response.status}.`, {
    code: body.code ?? CODES_OF_STATUSES[response.status],
    status: response.status,
    requestId: requestId ?? response.headers.get("X-Request-ID") ?? undefined,
    ...(Number.isFinite(retryAfter) && {retryAfter}),
    ...(errors && {errors}),
    ...(category && {category}),
    ...(suggestion && {suggestion}),
  });
}

function parsed(text) {
  try {
    return Object(JSON.parse(text));
  } catch {
    return {};
  }
}
