const TEXTS = ["prompt", "negative_prompt", "model_size", "output_format"];
const NUMBERS = ["duration", "seed", "temperature", "top_k", "top_p", "cfg_coef", "extend_stride"];

/** Return a link to this page that fills in the fields. They are in the fragment, which browsers do not send. */
export function linkOf(fields, page = location.href) {
  const url = new URL(page);
  url.search = "";
  const known = [...TEXTS, ...NUMBERS].filter((name) => fields[name] !== undefined);
  url.hash = new URLSearchParams(known.map((name) => [name, fields[name]])).toString();
  return url.href;
}

/** Return the fields of a fragment; null if it has no prompt. */
export function fieldsOf(fragment) {
  const values = new URLSearchParams(fragment.replace(/^#/, ""));
  if (!values.get("prompt")) return null;
  const texts = TEXTS.filter((name) => values.has(name)).map((name) => [name, values.get(name)]);
  const numbers = NUMBERS.filter((name) => values.has(name) && Number.isFinite(Number(values.get(name))));
  return Object.fromEntries([...texts, ...numbers.map((name) => [name, Number(values.get(name))])]);
}
