import {button, byId, element} from "./dom.js";

const FULL_WEIGHT = 100;
const STEP = 5;

/** The texts of a performance with a slider for the weight of each. It dispatches `change`. */
export class LivePrompts extends EventTarget {
  #rows = []; // {element, text, weight, output, remove}
  #maxRows = 4;

  constructor() {
    super();
    this.list = byId("live-prompts");
    this.add = byId("live-add");
    this.add.addEventListener("click", () => {
      this.#append("", FULL_WEIGHT);
      this.#rows.at(-1).text.focus();
    });
  }

  /** What is written, row by row: {text, weight} with the weight in percent. */
  get rows() {
    return this.#rows.map(({text, weight}) => ({text: text.value, weight: Number(weight.value)}));
  }

  set rows(rows) {
    this.#rows = [];
    this.list.replaceChildren();
    for (const {text, weight} of rows.slice(0, this.#maxRows)) this.#append(text, weight);
    this.#show();
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

  #append(value, percent) {
    const text = element("input", {type: "text", value, maxLength: 2000, placeholder: "Genre, instruments, mood"});
    const weight = element("input", {type: "range", min: -FULL_WEIGHT, max: FULL_WEIGHT, step: STEP, value: percent});
    const output = element("output", {});
    const remove = button("Remove", () => this.#remove(row), {icon: "close", iconOnly: true});
    const row = {text, weight, output, remove};
    row.element = element(
      "div",
      {className: "live-row", role: "group"},
      element("div", {className: "live-text"}, text, remove),
      element("div", {className: "live-weight"}, weight, output),
    );
    text.addEventListener("change", () => this.#changed());
    weight.addEventListener("input", () => this.#changed());
    this.#rows.push(row);
    this.list.append(row.element);
    this.#show();
  }

  #remove(row) {
    const index = this.#rows.indexOf(row);
    this.#rows.splice(index, 1);
    row.element.remove();
    this.#changed();
    (this.#rows[index] ?? this.#rows.at(-1)).text.focus();
  }

  #changed() {
    this.#show();
    this.dispatchEvent(new Event("change"));
  }

  #show() {
    const total = this.value.reduce((sum, {weight}) => sum + Math.max(0, weight), 0) || 1;
    this.#rows.forEach((row, index) => {
      const name = `Text ${index + 1}`;
      row.element.setAttribute("aria-label", name);
      row.text.setAttribute("aria-label", name);
      row.weight.setAttribute("aria-label", `Weight of text ${index + 1}`);
      row.remove.setAttribute("aria-label", `Remove text ${index + 1}`);
      row.remove.hidden = this.#rows.length === 1;
      row.output.textContent = shareOf(row.text.value.trim() ? Number(row.weight.value) / FULL_WEIGHT : 0, total);
      row.weight.setAttribute("aria-valuetext", row.output.textContent);
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
