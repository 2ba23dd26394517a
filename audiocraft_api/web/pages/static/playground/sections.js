import {button, byId, element} from "./dom.js";
import {inWords} from "./format.js";

const ADDED_SECONDS = 8;
const SHORTEST_SECONDS = 1;
const STEP_SECONDS = 0.5;

/**
 * The sections after the first one, which the prompt and the length describe. It dispatches `change`, and `swap` when
 * the first of them changes places with what comes before.
 */
export class Sections extends EventTarget {
  #rows = []; // {element, prompt, seconds, up, remove}
  #limits = null;
  #before = {seconds: 0, maximum: Infinity};

  constructor() {
    super();
    this.field = byId("sections-field");
    this.list = byId("sections");
    this.add = byId("add-section");
    this.add.addEventListener("click", () => {
      this.#append({prompt: "", duration: ADDED_SECONDS});
      this.#changed();
      this.#rows.at(-1).prompt.focus();
    });
  }

  /** The sections: {prompt, duration} for each, with seconds. */
  get value() {
    return this.#rows.map(({prompt, seconds}) => ({prompt: prompt.value.trim(), duration: Number(seconds.value)}));
  }

  set value(sections) {
    this.#rows = [];
    this.list.replaceChildren();
    for (const section of sections) this.#append(section);
    this.#changed();
  }

  /** What is wrong with the sections; "" if nothing is. */
  get problem() {
    if (this.value.some(({prompt}) => !prompt)) return "Describe each section, or remove it.";
    if (this.#rows.some(({seconds}) => !seconds.value || !seconds.checkValidity())) {
      return `A section has at least ${inWords(SHORTEST_SECONDS)}, in steps of half a second.`;
    }
    if (this.#total > this.#before.maximum) return `All together may have ${inWords(this.#before.maximum)}.`;
    return "";
  }

  /** Show the problem, and move the focus there. */
  showProblem() {
    byId("sections-problem").textContent = this.problem;
    const row = this.#rows.find(({prompt, seconds}) => !prompt.value.trim() || !seconds.checkValidity());
    const {prompt, seconds} = row ?? this.#rows[0];
    (row && prompt.value.trim() ? seconds : prompt).focus();
  }

  /** Adapt to a model's limits, or with null to one without sections, and to the length of the first section. */
  adapt(limits, seconds, maximum) {
    this.#limits = limits;
    this.#before = {seconds, maximum};
    this.field.hidden = !limits;
    this.#show();
  }

  get #total() {
    return this.value.reduce((sum, {duration}) => sum + duration, this.#before.seconds);
  }

  #append({prompt: text, duration}) {
    const prompt = element("textarea", {rows: 1, maxLength: 2000, value: text, placeholder: "How the music goes on"});
    const seconds = element("input", {
      ...{type: "number", min: SHORTEST_SECONDS, step: STEP_SECONDS, value: duration, required: true},
      inputMode: "decimal",
    });
    const up = button("Move up", () => this.#moveUp(row), {icon: "up", iconOnly: true});
    const remove = button("Remove", () => this.#remove(row), {icon: "close", iconOnly: true});
    const row = {prompt, seconds, up, remove};
    const unit = element("span", {"aria-hidden": "true", textContent: "s"});
    row.element = element(
      "div",
      {className: "section", role: "group"},
      prompt,
      element("div", {className: "section-foot"}, seconds, unit, up, remove),
    );
    for (const input of [prompt, seconds]) input.addEventListener("input", () => this.#changed());
    this.#rows.push(row);
    this.list.append(row.element);
  }

  #moveUp(row) {
    const index = this.#rows.indexOf(row);
    if (index === 0) this.dispatchEvent(new Event("swap"));
    else {
      const {value} = this;
      [value[index - 1], value[index]] = [value[index], value[index - 1]];
      this.value = value;
    }
    this.#rows[Math.max(0, index - 1)].up.focus();
  }

  #remove(row) {
    const index = this.#rows.indexOf(row);
    this.#rows.splice(index, 1);
    row.element.remove();
    this.#changed();
    (this.#rows[index] ?? this.#rows.at(-1))?.prompt.focus() ?? this.add.focus();
  }

  #changed() {
    byId("sections-problem").textContent = "";
    this.#show();
    this.dispatchEvent(new Event("change"));
  }

  #show() {
    this.#rows.forEach(({element: node, prompt, seconds, up, remove}, index) => {
      const name = `Section ${index + 2}`;
      node.setAttribute("aria-label", name);
      prompt.setAttribute("aria-label", name);
      seconds.setAttribute("aria-label", `Seconds of section ${index + 2}`);
      up.setAttribute("aria-label", `Move section ${index + 2} up`);
      remove.setAttribute("aria-label", `Remove section ${index + 2}`);
    });
    this.add.hidden = !this.#limits || this.#rows.length + 1 >= this.#limits.maximum;
    byId("sections-total").textContent = this.#rows.length ? `Together ${inWords(this.#total)}` : "";
  }
}
