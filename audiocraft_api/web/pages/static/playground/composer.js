import {CONTROLS, FORMATS, firstChoice, lengthsOf, modelsFor} from "./controls.js";
import {byId, element} from "./dom.js";
import {segmentedFields, segmentsOf} from "./fields.js";
import {brief, inWords} from "./format.js";
import {Sections} from "./sections.js";

const EXAMPLES = [
  ["Lo-fi", "lo-fi hip hop, dusty drums, mellow electric piano, rainy night, 80 bpm"],
  ["Cello", "solo cello in a cathedral, slow and aching, long reverb"],
  ["Synthwave", "driving synthwave, pulsing bass, bright arpeggios, 80s night drive, 110 bpm"],
  ["Bossa nova", "bossa nova, nylon guitar, brushed drums, warm upright bass, late afternoon"],
  ["Ambient", "slow ambient pads, evolving textures, distant bells, no drums"],
  ["Folk", "cheerful folk, acoustic guitar, mandolin, hand claps, campfire"],
];
const DEFAULT_SECONDS = 8;

/** The form: prompt, length and everything under "More". */
export class Composer extends EventTarget {
  models = [];
  #lengths = [DEFAULT_SECONDS];
  #inputs = new Map();
  #values = {};
  #sections = new Sections();

  /** `melody` is a MelodyPicker. It dispatches `submit`. */
  constructor(melody) {
    super();
    this.melody = melody;
    this.form = byId("composer");
    this.prompt = byId("prompt");
    this.length = byId("length");
    this.model = byId("model");
    this.format = byId("format");
    this.seed = byId("seed");
    this.notes = byId("notes");
    this.controls = byId("controls");
    this.format.append(
      ...Object.entries(FORMATS).map(([value, textContent]) => element("option", {value, textContent})),
    );
    byId("examples").append(...EXAMPLES.map((example) => this.#exampleButton(example)));
    this.form.addEventListener("submit", (event) => this.#onSubmit(event));
    this.form.addEventListener("keydown", (event) => this.#onKey(event));
    this.prompt.addEventListener("input", () => this.setProblem(""));
    this.length.addEventListener("input", () => this.#showLength());
    this.model.addEventListener("change", () => this.#onModel());
    this.format.addEventListener("change", () => this.#showSummary());
    byId("reset").addEventListener("click", () => this.#reset());
    melody.addEventListener("change", () => this.#showModels());
    this.notes.addEventListener("change", () => this.#showModels());
    this.#sections.addEventListener("change", () => this.#showSections());
    this.#sections.addEventListener("swap", () => this.#swapFirst());
  }

  /** The fields of the request as they would be sent. */
  get fields() {
    const prompt = this.prompt.value.trim();
    const sections = this.#hasSections ? this.#sections.value : [];
    const fields = sections.length
      ? segmentedFields([{prompt, duration: this.duration}, ...sections])
      : {prompt, duration: this.duration};
    Object.assign(fields, {model_size: this.model.value, output_format: this.format.value});
    if (this.#hasNotes) fields.notes = this.notes.value.trim();
    if (this.seed.value !== "") fields.seed = Number(this.seed.value);
    for (const {name, initial} of this.#availableIn(fields)) {
      if (this.#values[name] !== undefined && this.#values[name] !== initial) fields[name] = this.#values[name];
    }
    return fields;
  }

  get duration() {
    return this.#lengths[Number(this.length.value)] ?? DEFAULT_SECONDS;
  }

  get currentModel() {
    return this.models.find((model) => model.name === this.model.value) ?? null;
  }

  setModels(models, wanted) {
    this.models = models;
    this.#wanted ??= this.model.value || wanted;
    this.#showModels();
  }

  chooseModel(name) {
    this.#wanted = name;
    this.#showModels();
  }

  /** Return the names of other models for a job that need no download: in memory, or built by the server. */
  modelsAtHand({fields, melody}) {
    return modelsFor(this.models, melody !== null || Boolean(fields.notes))
      .filter(({name, loaded, checkpoint}) => name !== fields.model_size && (loaded || checkpoint === "built-in"))
      .map(({name}) => name);
  }

  #wanted; // the model to choose once the server has listed its models

  /** Fill in the fields of a recipe or a link. */
  fill(fields) {
    const [first, ...sections] = segmentsOf(fields.segments) ?? [fields];
    this.prompt.value = first.prompt ?? "";
    this.#sections.value = sections;
    this.seed.value = fields.seed ?? "";
    this.notes.value = fields.notes ?? "";
    this.format.value = fields.output_format in FORMATS ? fields.output_format : this.format.value;
    this.#wanted = fields.model_size;
    this.#values = Object.fromEntries(
      CONTROLS.filter(({name}) => name in fields).map(({name}) => [name, fields[name]]),
    );
    this.#wantedDuration = first.duration;
    this.#showModels();
    const hasMore = sections.length || Object.keys(this.#values).length || fields.seed !== undefined || fields.notes;
    if (hasMore) byId("more").open = true;
  }

  #wantedDuration;

  /** Show what is wrong with the prompt, or with "" nothing. */
  setProblem(text) {
    byId("prompt-problem").textContent = text;
    this.prompt.setAttribute("aria-invalid", String(Boolean(text)));
  }

  #availableIn({duration}) {
    const model = this.currentModel;
    return model ? CONTROLS.filter((control) => control.from(model, {duration})) : [];
  }

  /** Whether the chosen model has sections, and the request is no form, with which there are none. */
  get #hasSections() {
    const isForm = this.melody.value || this.melody.source || this.#hasNotes;
    return Boolean(this.currentModel?.controls.segments) && !isForm;
  }

  /** Whether the music follows notes; a file takes their place. */
  get #hasNotes() {
    return this.notes.value.trim() !== "" && !this.melody.value;
  }

  #exampleButton([name, prompt]) {
    const onclick = () => {
      this.prompt.value = prompt;
      this.setProblem("");
      this.prompt.focus();
    };
    return element("button", {type: "button", className: "chip", textContent: name, title: prompt, onclick});
  }

  #showModels() {
    this.notes.disabled = this.melody.value !== null;
    const models = modelsFor(this.models, this.melody.value !== null || this.#hasNotes);
    const chosen = firstChoice(models, this.#wanted ?? this.model.value);
    this.model.replaceChildren(
      ...models.map(({name, kind, loaded}) => {
        const parts = [name, kind === "sound_effects" && "sound effects", loaded && "loaded"];
        return element("option", {value: name, textContent: parts.filter(Boolean).join(" · ")});
      }),
    );
    this.model.value = chosen ?? "";
    byId("no-melody-model").hidden = models.length > 0 || !this.models.length;
    if (this.models.length) this.#wanted = undefined;
    this.#onModel();
  }

  #onModel() {
    const model = this.currentModel;
    byId("generate").disabled = !model;
    if (!model) return;
    const badge = byId("license");
    badge.textContent = model.licence;
    badge.className = `badge ${model.commercial_use ? "free" : "restricted"}`;
    badge.title = model.commercial_use ? "The license allows commercial use." : "No commercial use.";
    byId("model-description").textContent = model.description;
    this.#showSummary();
    const duration = this.#wantedDuration ?? this.duration;
    this.#wantedDuration = undefined;
    this.#lengths = lengthsOf(model);
    if (!this.#lengths.includes(duration)) this.#lengths = [...this.#lengths, duration].sort((a, b) => a - b);
    this.length.max = this.#lengths.length - 1;
    this.length.value = this.#lengths.indexOf(duration);
    this.#showLength();
  }

  #showSummary() {
    const number = 1 + this.#sections.value.length;
    const sections = number > 1 && this.#hasSections ? ` · ${number} sections` : "";
    byId("more-summary").textContent = `${this.model.value} · ${FORMATS[this.format.value]}${sections}`;
  }

  #showLength() {
    byId("length-value").textContent = brief(this.duration);
    this.length.setAttribute("aria-valuetext", inWords(this.duration));
    this.#showSections();
  }

  #showSections() {
    const controls = this.currentModel?.controls;
    this.#sections.adapt(this.#hasSections ? controls.segments : null, this.duration, controls?.duration.maximum);
    const isFirst = this.#hasSections && this.#sections.value.length > 0;
    byId("length-label").textContent = isFirst ? "Length of the first section" : "Length";
    this.#showSummary();
    this.#showControls();
  }

  /** Let the prompt and the length change places with the second section. */
  #swapFirst() {
    const [second, ...others] = this.#sections.value;
    this.#sections.value = [{prompt: this.prompt.value, duration: this.duration}, ...others];
    this.prompt.value = second.prompt;
    this.#wantedDuration = second.duration;
    this.#onModel();
  }

  #showControls() {
    const model = this.currentModel;
    if (!model) return;
    const {duration} = this.fields;
    const available = this.#availableIn({duration});
    for (const [name, row] of this.#inputs) {
      if (available.some((control) => control.name === name)) continue;
      row.remove();
      this.#inputs.delete(name);
    }
    for (const control of available) {
      if (!this.#inputs.has(control.name)) this.#inputs.set(control.name, this.#row(control));
      this.#update(control, control.from(model, {duration}));
      this.controls.append(this.#inputs.get(control.name));
    }
  }

  #row({name, label, type, hint, initial, half, placeholder, options = []}) {
    const id = `control-${name}`;
    const tag = {text: "textarea", select: "select"}[type] ?? "input";
    const own = {textarea: {rows: 1}, select: {}, input: {type, placeholder}}[tag];
    const input = element(tag, {id, ...own, "aria-describedby": `${id}-hint`});
    if (type === "select") input.append(...["", ...options].map((value) => new Option(value || "free", value)));
    const output = type === "range" ? element("output", {for: id}) : null;
    input.addEventListener("input", () => {
      const empty = input.value.trim() === "";
      this.#values[name] = empty ? initial : tag === "input" ? Number(input.value) : input.value.trim();
      if (output) output.textContent = input.value;
    });
    const heading = element(
      "div",
      {className: "field-head"},
      element("label", {htmlFor: id, textContent: label}),
      output,
    );
    return element(
      "div",
      {className: half ? "field half" : "field"},
      heading,
      input,
      element("small", {id: `${id}-hint`, textContent: hint}),
    );
  }

  #update({name, type, initial}, limits) {
    const input = this.#inputs.get(name).querySelector("input, textarea, select");
    if (document.activeElement === input) return;
    const value = this.#values[name] ?? initial;
    const widened = type === "range" && value > limits.max ? {...limits, max: value} : limits;
    Object.assign(input, widened, {value: value ?? ""});
    const output = this.#inputs.get(name).querySelector("output");
    if (output) output.textContent = String(value);
  }

  #reset() {
    this.#values = {};
    this.#sections.value = [];
    this.seed.value = "";
    this.notes.value = "";
    this.format.value = "wav";
    this.#showModels();
  }

  #onKey(event) {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    this.form.requestSubmit();
  }

  #onSubmit(event) {
    event.preventDefault();
    if (!this.prompt.value.trim()) {
      this.setProblem("Describe the music first, or choose an example.");
      this.prompt.focus();
      return;
    }
    if (this.#hasSections && this.#sections.problem) {
      byId("more").open = true;
      this.#sections.showProblem();
      return;
    }
    if (this.currentModel) this.dispatchEvent(new Event("submit"));
  }
}
