import {byId, element} from "./dom.js";
import {snippetsOf} from "./snippets.js";

/** Shows a clip's request as programs, in tabs. */
export class RequestDialog {
  #snippets = [];

  constructor(copy) {
    this.dialog = byId("request-dialog");
    this.tabs = byId("request-tabs");
    this.code = byId("request-code");
    byId("request-copy").addEventListener("click", () => copy(this.code.textContent, "The request"));
    byId("request-close").addEventListener("click", () => this.dialog.close());
    this.tabs.addEventListener("keydown", (event) => this.#onKey(event));
  }

  open(clip, base, needsKey) {
    this.#snippets = snippetsOf(clip, base, needsKey);
    this.tabs.replaceChildren(...this.#snippets.map(([title], index) => this.#tab(title, index)));
    this.#show(0);
    this.dialog.showModal();
  }

  #tab(textContent, index) {
    const id = `request-tab-${index}`;
    return element("button", {
      type: "button",
      role: "tab",
      id,
      textContent,
      "aria-controls": "request-code",
      onclick: () => this.#show(index),
    });
  }

  #show(index) {
    this.index = index;
    [...this.tabs.children].forEach((tab, i) => {
      tab.setAttribute("aria-selected", String(i === index));
      tab.tabIndex = i === index ? 0 : -1;
    });
    this.code.setAttribute("aria-labelledby", `request-tab-${index}`);
    this.code.textContent = this.#snippets[index][1];
  }

  #onKey(event) {
    const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (!step) return;
    this.#show((this.index + step + this.#snippets.length) % this.#snippets.length);
    this.tabs.children[this.index].focus();
  }
}
