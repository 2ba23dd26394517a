import {ClipCard} from "./clip-card.js";
import {byId} from "./dom.js";
import {matches} from "./history.js";

/** The list of cards: jobs first, then finished clips, newest first, as far as they match the search. */
export class Library {
  #jobs = [];
  #cards = new Map();
  clips = [];

  constructor(player, actions) {
    this.player = player;
    this.actions = actions;
    this.list = byId("clips");
    this.search = byId("search");
    this.starred = byId("only-starred");
    this.search.addEventListener("input", () => this.show());
    this.starred.addEventListener("change", () => this.show());
  }

  /** The clips that are shown. */
  get visible() {
    const search = this.search.value.trim();
    return this.clips.filter((clip) => (!this.starred.checked || clip.starred) && matches(clip, search));
  }

  addJob(card) {
    this.#jobs.unshift(card);
    this.list.prepend(card.element);
    this.show();
  }

  removeJob(card) {
    const hadFocus = card.element.contains(document.activeElement);
    this.#jobs = this.#jobs.filter((other) => other !== card);
    card.element.remove();
    this.show();
    return hadFocus;
  }

  addClips(clips) {
    const known = new Set(this.clips.map(({id}) => id));
    this.clips = [...this.clips, ...clips.filter(({id}) => !known.has(id))].sort((a, b) => b.created - a.created);
    this.show();
  }

  removeClip(clip) {
    this.clips = this.clips.filter(({id}) => id !== clip.id);
    this.#cards.get(clip.id)?.element.remove();
    this.#cards.delete(clip.id);
    this.show();
  }

  /** Show a clip that the history has changed, or with null none. */
  replaceClip(id, changed) {
    const clip = this.clips.find((one) => one.id === id);
    if (!clip) return;
    if (!changed) return this.removeClip(clip);
    for (const name of Object.keys(clip)) if (!(name in changed)) delete clip[name];
    Object.assign(clip, changed);
    this.cardOf(clip).update();
  }

  cardOf(clip) {
    if (!this.#cards.has(clip.id)) this.#cards.set(clip.id, new ClipCard(clip, this.player, this.actions));
    return this.#cards.get(clip.id);
  }

  /** Put the cards in their order, without touching those that are in place. */
  show() {
    const visible = this.visible;
    const wanted = [...this.#jobs.map((card) => card.element), ...visible.map((clip) => this.cardOf(clip).element)];
    for (const node of [...this.list.children]) if (!wanted.includes(node)) node.remove();
    wanted.forEach((node, index) => {
      if (this.list.children[index] !== node) this.list.insertBefore(node, this.list.children[index] ?? null);
    });
    byId("empty").hidden = Boolean(this.clips.length || this.#jobs.length);
    byId("library-tools").hidden = !this.clips.length;
    byId("nothing-found").hidden = !this.clips.length || visible.length > 0;
    const total = this.clips.length;
    byId("count").textContent = visible.length === total ? total || "" : `${visible.length} of ${total}`;
  }

  /** Let every card show where the player is. */
  updatePlayer() {
    for (const card of this.#jobs) if (!card.job.ended) card.updatePlayer();
    for (const card of this.#cards.values()) card.updatePlayer();
  }

  /** Let the card that plays show the position. */
  updatePosition() {
    const id = this.player.clip?.id;
    const card = this.#jobs.find(({job}) => job.id === id) ?? this.#cards.get(id);
    card?.updatePlayer();
  }
}
