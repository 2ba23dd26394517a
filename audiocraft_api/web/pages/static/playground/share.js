import {segmentedFields, segmentsOf, sentFields} from "./fields.js";

const TEXTS = ["prompt", "negative_prompt", "model_size", "output_format", "key", "time_signature", "notes"];
const NUMBERS = [
  ...["duration", "seed", "temperature", "top_k", "top_p", "cfg_coef", "extend_stride"],
  ...["bpm", "fade_in", "fade_out"],
];

/** Return a link to this page that fills in the fields. They are in the fragment, which browsers do not send. */
export function linkOf(fields, page = location.href) {
  const url = new URL(page);
  url.search = "";
  const sent = sentFields(fields);
  const values = new URLSearchParams();
  if (sent.segments) values.set("segments", JSON.stringify(sent.segments));
  for (const name of [...TEXTS, ...NUMBERS]) if (sent[name] !== undefined) values.set(name, sent[name]);
  url.hash = values.toString();
  return url.href;
}

/** Return the fields of a fragment; null if it has neither a prompt nor segments. */
export function fieldsOf(fragment) {
  const values = new URLSearchParams(fragment.replace(/^#/, ""));
  const segments = segmentsIn(values);
  if (!values.get("prompt") && !segments) return null;
  const texts = TEXTS.filter((name) => values.has(name)).map((name) => [name, values.get(name)]);
  const numbers = NUMBERS.filter((name) => values.has(name) && Number.isFinite(Number(values.get(name))));
  const fields = Object.fromEntries([...texts, ...numbers.map((name) => [name, Number(values.get(name))])]);
  return segments ? {...fields, ...segmentedFields(segments)} : fields;
}

function segmentsIn(values) {
  try {
    return segmentsOf(JSON.parse(values.get("segments")));
  } catch {
    return null;
  }
}
