/** The fields of a clip: what is sent for them, and how they change from request to request. */

const MAX_TITLE_TEXTS = 3;

/** Return the fields that are sent for a clip: a performance takes the place of all but the format. */
export function sentFields({performance, segments, ...fields}) {
  if (performance) return {performance, output_format: fields.output_format};
  if (!segments) return fields;
  const {prompt, duration, ...others} = fields;
  return {segments, ...others};
}

/** Return the fields of a clip without its seed, so that another one makes another version. */
export function unseeded({seed, performance, ...fields}) {
  if (!performance) return fields;
  const other = Math.floor(Math.random() * 2 ** 32);
  return {...fields, performance: {...performance, seed: other}};
}

/** Return the fields that continue a clip: after segments or a performance, with the last prompt; without a melody. */
export function continuingFields({seed, performance, segments, notes, ...fields}) {
  if (segments) return {...fields, ...segments.at(-1)};
  if (!performance) return fields;
  const {prompts} = performance.changes.at(-1);
  const [{text}] = [...prompts].sort((a, b) => b.weight - a.weight);
  return {...fields, prompt: text};
}

/** Return the fields of segments, with a prompt that stands for them on the page, and the duration of all. */
export function segmentedFields(segments) {
  const duration = segments.reduce((sum, segment) => sum + segment.duration, 0);
  return {prompt: titleOfTexts(segments.map(({prompt}) => prompt)), duration, segments};
}

/** Return the segments of a link or an imported file, without unknown fields; null if they are not valid. */
export function segmentsOf(value) {
  if (!Array.isArray(value) || !value.length) return null;
  const isSegment = ({prompt, duration}) => typeof prompt === "string" && duration > 0 && Number.isFinite(duration);
  if (!value.every((segment) => segment && isSegment(segment))) return null;
  return value.map(({prompt, duration}) => ({prompt, duration}));
}

/** Return the texts of a clip, each once, as its title. */
export function titleOfTexts(texts) {
  const names = [...new Set(texts)];
  return names.slice(0, MAX_TITLE_TEXTS).join(" → ") + (names.length > MAX_TITLE_TEXTS ? " → …" : "");
}
