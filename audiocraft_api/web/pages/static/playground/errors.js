const LIMITS = ["limit_exceeded", "too_many_tasks", "rate_limited", "quota_exceeded", "too_many_requests_at_once"];
const FULL = ["unavailable", "queue_full", "too_many_streams", "model_loading", "shutting_down", "out_of_memory"];
const TITLES = {
  key: "This server needs an API key",
  limit: "You have reached a limit",
  full: "The server is busy",
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
  if (status === 503 || FULL.includes(code)) return "full";
  if (status === 400 || code === "invalid_request" || code === "invalid_melody") return "invalid";
  return "failed";
}

export const titleOf = (error) => TITLES[kindOf(error)];

/** Return the prompts that a suggestion of the prompt policy offers: what it quotes, or else all of it. */
export function suggestedPrompts(suggestion) {
  const quoted = [...(suggestion ?? "").matchAll(/(?<![\p{L}\p{N}])['"“‘]([^'"”’]{3,})['"”’]/gu)].map(
    (match) => match[1],
  );
  if (quoted.length) return quoted;
  const words = (suggestion ?? "").split(":").pop().trim().replace(/\.$/, "");
  return words ? [words] : [];
}
