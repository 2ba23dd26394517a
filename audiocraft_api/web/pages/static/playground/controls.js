const TONICS = ["C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B"];
export const KEYS = TONICS.flatMap((tonic) => [`${tonic} major`, `${tonic} minor`]);

/**
 * The controls under "More" that a stream can have. `from` returns a control's limits for a model, or null if the model
 * does not have it; a value that is the default is not sent. Two that are `half` as wide share a row.
 */
export const CONTROLS = [
  {
    name: "negative_prompt",
    label: "Without",
    type: "text",
    hint: "What the music should not sound like",
    initial: "",
    from: (model) => model.controls.negative_prompt && {maxLength: model.controls.negative_prompt.max_characters},
  },
  {
    name: "bpm",
    half: true,
    label: "Tempo",
    type: "number",
    hint: "Beats per minute",
    initial: null,
    placeholder: "free",
    from: ({controls: {bpm}}) => bpm && {min: bpm.minimum, max: bpm.maximum, step: 1},
  },
  {
    name: "key",
    half: true,
    label: "Key",
    type: "select",
    hint: "The model may deviate",
    initial: null,
    options: KEYS,
    from: ({controls: {key}}) => key && {},
  },
  {
    name: "time_signature",
    half: true,
    label: "Time signature",
    type: "select",
    hint: "The model may deviate",
    initial: null,
    options: ["4/4", "3/4", "6/8"],
    from: ({controls: {time_signature: signature}}) => signature && {},
  },
  {
    name: "cfg_coef",
    label: "Guidance",
    type: "range",
    hint: "How closely the music follows the prompt",
    initial: 3,
    from: () => ({min: 0, max: 10, step: 0.1}),
  },
  {
    name: "temperature",
    label: "Temperature",
    type: "range",
    hint: "Lower is more predictable, higher more varied",
    initial: 1,
    from: () => ({min: 0.1, max: 2, step: 0.05}),
  },
  {
    name: "top_k",
    label: "Top-k",
    type: "number",
    hint: "Choose among this many tokens; 0 turns it off",
    initial: 250,
    from: () => ({min: 0, max: 2048, step: 1}),
  },
  {
    name: "top_p",
    label: "Top-p",
    type: "range",
    hint: "Over 0, replaces top-k",
    initial: 0,
    from: () => ({min: 0, max: 1, step: 0.01}),
  },
  {
    name: "extend_stride",
    label: "New seconds per window",
    type: "number",
    initial: null,
    hint: "Lower keeps long pieces more coherent and takes longer",
    from: ({controls: {extend_stride: stride}}, {duration}) =>
      stride &&
      duration > stride.exclusive_maximum && {
        min: stride.minimum,
        max: stride.exclusive_maximum - 1,
        step: 1,
        placeholder: String(stride.default),
      },
  },
  {
    name: "fade_in",
    half: true,
    label: "Fade in",
    type: "number",
    hint: "Seconds",
    initial: 0,
    from: ({controls: {fade_in: fade}}) => fade && {min: 0, max: fade.maximum, step: 0.1},
  },
  {
    name: "fade_out",
    half: true,
    label: "Fade out",
    type: "number",
    hint: "Seconds",
    initial: 0,
    from: ({controls: {fade_out: fade}}) => fade && {min: 0, max: fade.maximum, step: 0.1},
  },
];

export const FORMATS = {
  wav: "WAV",
  flac: "FLAC",
  mp3: "MP3",
  ogg: "Ogg Vorbis",
  opus: "Opus",
  m4a: "M4A (AAC)",
  wav24: "WAV, 24 bit",
  wav32f: "WAV, 32-bit float",
};

const LENGTHS = [
  ...Array.from({length: 30}, (_, i) => i + 1),
  35,
  40,
  45,
  50,
  55,
  60,
  75,
  90,
  105,
  120,
  150,
  180,
  210,
  240,
  270,
  300,
];

/** Return the lengths in seconds that the slider offers for a model. */
export function lengthsOf(model) {
  const {minimum, maximum} = model.controls.duration;
  const within = LENGTHS.filter((length) => length >= minimum && length <= maximum);
  return within.at(-1) === maximum ? within : [...within, maximum];
}

/** Return the models that can make a request. */
export const modelsFor = (models, withMelody) => models.filter((model) => (withMelody ? model.melody : model.text));

/**
 * Return the name of the model to begin with: the one asked for, the first one loaded, `demo`, which needs no download,
 * or any.
 */
export function firstChoice(models, wanted) {
  const names = models.map(({name}) => name);
  const loaded = models.find((model) => model.loaded)?.name;
  return [wanted, loaded, "demo", names[0]].find((name) => names.includes(name));
}
