import {button, byId, element} from "./dom.js";
import {LivePad, WEIGHT_STEP} from "./live-pad.js";

const FULL_WEIGHT = 100;
const ADDED_WEIGHT = 50;

/**
 * The texts of a performance. A slider and a dot on the pad show the weight of each, and both change it. It dispatches
 * `change`.
 */
export class LivePrompts extends EventTarget {
  #rows = []; // {element, number, text, weight, output, remove, dot}
  #maxRows = 4;
  #pad = new LivePad();

  constructor() {
    super();
    this.list = byId("live-prompts");
    this.add = byId("live-add");
    this.add.addEventListener("click", () => {
      this.#append({text: "", weight: ADDED_WEIGHT});
      this.#rows.at(-1).text.focus();
    });
    this.#pad.addEventListener("move", () => this.#onPad());
  }

  /** What is written, row by row: {text, weight, place} with the weight in percent and the place of the dot. */
  get rows() {
    return this.#rows.map(({text, weight, dot: {x, y}}) => ({
      text: text.value,
      weight: Number(weight.value),
      place: {x, y},
    }));
  }

  set rows(rows) {
    for (const {dot} of this.#rows) this.#pad.remove(dot);
    this.#rows = [];
    this.list.replaceChildren();
    for (const row of rows.slice(0, this.#maxRows)) this.#append(row);
    this.#show();
  }

  /** The place of the listener on the pad. */
  get listener() {
    return this.#pad.listener;
  }

  set listener(place) {
    this.#pad.listener = place;
  }

  set maxRows(number) {
    this.#maxRows = number;
    this.#show();
  }

  set maxLength(characters) {
    for (const {text} of this.#rows) text.maxLength = characters;
  }

  /** The prompts as they are sent: texts with a weight other than 0. */
  get value() {
    return this.rows
      .map(({text, weight}) => ({text: text.trim(), weight: weight / FULL_WEIGHT}))
      .filter(({text, weight}) => text && weight);
  }

  /** What is wrong with the prompts; "" if nothing is. */
  get problem() {
    const prompts = this.value;
    if (!prompts.some(({weight}) => weight > 0)) return "Write a text, and give it a weight above 0.";
    if (new Set(prompts.map(({text}) => text)).size < prompts.length) return "Two of the texts are the same.";
    return "";
  }

  #append({text: value, weight: percent, place}) {
    const text = element("input", {type: "text", value, maxLength: 2000, placeholder: "Genre, instruments, mood"});
    const range = {min: -FULL_WEIGHT, max: FULL_WEIGHT, step: WEIGHT_STEP, value: percent};
    const weight = element("input", {type: "range", ...range});
    const dot = this.#pad.add(Number(weight.value), place);
    const output = element("output", {});
    const remove = button("Remove", () => this.#remove(row), {icon: "close", iconOnly: true});
    const number = element("span", {className: "live-number", "aria-hidden": "true"});
    const row = {text, weight, output, remove, dot, number};
    row.element = element(
      "div",
      {className: "live-row", role: "group"},
      element("div", {className: "live-text"}, number, text, remove),
      element("div", {className: "live-weight"}, weight, output),
    );
    text.addEventListener("input", () => this.#show());
    text.addEventListener("change", () => this.#changed());
    weight.addEventListener("input", () => {
      this.#pad.setWeight(dot, Number(weight.value));
      this.#changed();
    });
    this.#rows.push(row);
    this.list.append(row.element);
    this.#show();
  }

  #remove(row) {
    const index = this.#rows.indexOf(row);
    this.#rows.splice(index, 1);
    row.element.remove();
    this.#pad.remove(row.dot);
    this.#changed();
    (this.#rows[index] ?? this.#rows.at(-1)).text.focus();
  }

  #onPad() {
    for (const {weight, dot} of this.#rows) weight.value = dot.weight;
    this.#changed();
  }

  #changed() {
    this.#show();
    this.dispatchEvent(new Event("change"));
  }

  #show() {
    const total = this.value.reduce((sum, {weight}) => sum + Math.max(0, weight), 0) || 1;
    this.#rows.forEach((row, index) => {
      const name = `Text ${index + 1}`;
      row.number.textContent = index + 1;
      row.element.setAttribute("aria-label", name);
      row.text.setAttribute("aria-label", name);
      row.weight.setAttribute("aria-label", `Weight of text ${index + 1}`);
      row.remove.setAttribute("aria-label", `Remove text ${index + 1}`);
      row.remove.hidden = this.#rows.length === 1;
      const text = row.text.value.trim();
      const weight = text ? Number(row.weight.value) / FULL_WEIGHT : 0;
      const words = shareOf(weight, total);
      row.output.textContent = words;
      row.weight.setAttribute("aria-valuetext", words);
      this.#pad.describe(row.dot, {name, text, share: weight / total, words});
    });
    this.add.hidden = this.#rows.length >= this.#maxRows;
  }
}

/** Say what part a prompt has in the music: weights are relative to the positive ones. */
function shareOf(weight, total) {
  if (!weight) return "off";
  const percent = `${Math.round((100 * Math.abs(weight)) / total)} %`;
  return weight > 0 ? percent : `away ${percent}`;
}
