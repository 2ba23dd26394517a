/** Let the buttons of a tab list show one panel each: with a click, or with the arrow keys. */
export class Tabs {
  constructor(list) {
    this.tabs = [...list.querySelectorAll("[role=tab]")];
    this.tabs.forEach((tab) => tab.addEventListener("click", () => this.show(tab)));
    list.addEventListener("keydown", (event) => this.#onKey(event));
    this.show(this.tabs[0]);
  }

  show(chosen) {
    for (const tab of this.tabs) {
      tab.setAttribute("aria-selected", String(tab === chosen));
      tab.tabIndex = tab === chosen ? 0 : -1;
      document.getElementById(tab.getAttribute("aria-controls")).hidden = tab !== chosen;
    }
  }

  #onKey(event) {
    const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (!step) return;
    event.preventDefault();
    const index = this.tabs.indexOf(document.activeElement);
    const next = this.tabs[(index + step + this.tabs.length) % this.tabs.length];
    this.show(next);
    next.focus();
  }
}
