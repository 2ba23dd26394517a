import {byId} from "./dom.js";

const STORED = "audiocraft-api-key";

/** The caller's API key: in memory, or if asked, in `sessionStorage`, which ends with the tab. */
export class KeyBox extends EventTarget {
  #storage = sessionStorageOrNull();
  #key = this.#storage?.getItem(STORED) ?? null;

  constructor() {
    super();
    this.dialog = byId("key-dialog");
    this.input = byId("key");
    this.keep = byId("keep-key");
    byId("key-button").addEventListener("click", () => this.open());
    byId("key-cancel").addEventListener("click", () => this.dialog.close());
    byId("key-form").addEventListener("submit", (event) => this.#onSubmit(event));
  }

  get key() {
    return this.#key;
  }

  open(problem = "") {
    byId("key-problem").textContent = problem;
    this.input.value = this.#key ?? "";
    this.keep.checked = Boolean(this.#storage?.getItem(STORED));
    this.keep.disabled = !this.#storage;
    if (!this.dialog.open) this.dialog.showModal();
    this.input.select();
  }

  #onSubmit(event) {
    event.preventDefault();
    this.#key = this.input.value.trim() || null;
    if (this.#key && this.keep.checked) this.#storage.setItem(STORED, this.#key);
    else this.#storage?.removeItem(STORED);
    this.dialog.close();
    this.dispatchEvent(new Event("change"));
  }
}

/** Browsers that are set to keep nothing throw when a page touches the storage. */
function sessionStorageOrNull() {
  try {
    return window.sessionStorage;
  } catch {
    return null;
  }
}
