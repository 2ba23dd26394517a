const NAMES = {86400: "today", 3600: "this hour", 60: "this minute"};

/** What remains of the caller's limits, as the `RateLimit` headers of the latest response say. */
export class RateLimits extends EventTarget {
  windows = [];

  read(headers) {
    const policies = parse(headers.get("RateLimit-Policy"));
    const states = parse(headers.get("RateLimit"));
    if (!states.size) return;
    this.windows = [...states].map(([name, {r, t}]) => {
      const {q, w} = policies.get(name) ?? {};
      return {name, limit: q, remaining: r, resetSeconds: t, period: NAMES[w] ?? `per ${w} seconds`};
    });
    this.dispatchEvent(new Event("change"));
  }

  /** The limits in words, such as "7 of 10 requests left this minute". */
  get sentences() {
    return this.windows.map(({name, limit, remaining, period}) => {
      const unit = name.includes("second") || name.includes("audio") ? "seconds of audio" : "requests";
      return `${remaining} of ${limit} ${unit} left ${period}`;
    });
  }
}

/** Parse a list of `"name";a=1;b=2` (RFC 9651) into a map of name to values. */
function parse(header) {
  const found = new Map();
  for (const item of (header ?? "").split(",")) {
    const [name, ...parameters] = item.trim().split(";");
    if (!name) continue;
    const values = parameters.map((parameter) => parameter.split("=")).map(([key, value]) => [key, Number(value)]);
    found.set(name.replaceAll('"', ""), Object.fromEntries(values));
  }
  return found;
}
