/** Return the fields that are sent for a clip: a performance takes the place of all but the format. */
export function sentFields({performance, ...fields}) {
  return performance ? {performance, output_format: fields.output_format} : fields;
}

/** Return the fields of a clip without its seed, so that another one makes another version. */
export function unseeded({seed, performance, ...fields}) {
  if (!performance) return fields;
  const other = Math.floor(Math.random() * 2 ** 32);
  return {...fields, performance: {...performance, seed: other}};
}

/** Return the fields that continue a clip: after a performance, with its last prompt. */
export function continuingFields({seed, performance, ...fields}) {
  if (!performance) return fields;
  const {prompts} = performance.changes.at(-1);
  const [{text}] = [...prompts].sort((a, b) => b.weight - a.weight);
  return {...fields, prompt: text};
}
