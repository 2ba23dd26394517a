const LIMITS = ["limit_exceeded", "too_many_tasks", "rate_limited", "quota_exceeded", "too_many_requests_at_once"];
const FULL = ["unavailable", "queue_full", "too_many_streams", "model_loading", "shutting_down", "out_of_memory"];
const TITLES = {
  key: "This server needs an API key",
  limit: "You have reached a limit",
  full: "The server is busy",
  model: "This model cannot be used now",
  refused: "The prompt was refused",
  lost: "No connection to the server",
  invalid: "The request cannot be made",
  failed: "No clip was made",
};

/** Return what an ApiError means to the user: a key of `TITLES`. */
export function kindOf({status, code}) {
  if (code === "connection_lost") return "lost";
  if (status === 401 || status === 403 || code === "unauthorized" || code === "forbidden") return "key";
  if (status === 429 || LIMITS.includes(code)) return "limit";
  if (code === "prompt_refused") return "refused";
  if (code === "model_unavailable") return "model";
  if (status === 503 || FULL.includes(code)) return "full";
  if (status === 400 || code === "invalid_request" || code === "invalid_melody") return "invalid";
  return "failed";
}

export const titleOf = (error) => TITLES[kindOf(error)];

/** Return the prompts that a suggestion offers with one click: what it quotes, or all of it unless it is advice. */
export function suggestedPrompts(suggestion) {
  const text = suggestion ?? "";
  const quoted = [...text.matchAll(/(?<!\p{L})(['"])(.{3,}?)\1(?!\p{L})/gu)].map((match) => match[2]);
  if (quoted.length || !text.trim() || text.startsWith("Describe ")) return quoted;
  return [text.trim()];
}
