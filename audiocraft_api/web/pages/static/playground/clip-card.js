import {FORMATS} from "./controls.js";
import {button, element, setIcon} from "./dom.js";
import {ago, brief} from "./format.js";
import {Waveform} from "./waveform.js";

const NUM_VARIATIONS = 4;
const SHORTEST_SOURCE = 1; // in seconds; less gives the model nothing to continue

/** The card of a finished clip. */
export class ClipCard {
  /** `actions` has a method of a clip for each of the buttons. */
  constructor(clip, player, actions) {
    this.clip = clip;
    this.player = player;
    this.actions = actions;
    this.region = null;
    const {fields, duration} = clip;
    this.play = button("Play", () => this.toggle(), {icon: "play", iconOnly: true, className: "play"});
    this.star = button("Star", () => actions.star(clip), {icon: "star", iconOnly: true});
    this.waveform = new Waveform({
      label: `Position in: ${fields.prompt}`,
      duration,
      onseek: (seconds) => this.#seek(seconds),
      onregion: (region) => this.#setRegion(region),
    });
    this.title = element("h3", {textContent: fields.prompt, title: fields.prompt});
    const head = element("div", {className: "card-head"}, this.play, this.title, this.star, this.#menu());
    this.time = element("time", {dateTime: new Date(clip.created).toISOString()});
    this.seed = button(`seed ${clip.seed}`, () => actions.copy(String(clip.seed), "The seed"), {
      className: "link",
      title: "Copy the seed",
    });
    const facts = [
      fields.model_size,
      fields.performance && "live",
      FORMATS[clip.format] ?? clip.format,
      clip.melodyName && `follows ${clip.melodyName}`,
      fields.notes && "follows notes",
      clip.continues && `continues ${clip.continues.id ? `from ${brief(clip.continues.end)}` : clip.continues.name}`,
    ];
    const details = element(
      "p",
      {className: "facts"},
      element("span", {textContent: [brief(duration), ...facts.filter(Boolean)].join(" · ")}),
      this.seed,
      this.time,
    );
    this.compare = button("A/B", () => actions.compare(clip), {
      "aria-pressed": "false",
      title: "Compare with another clip",
    });
    this.toolbar = element(
      "div",
      {className: "toolbar"},
      button("Download", () => actions.download(clip, clip.format), {icon: "download"}),
      button("Again", () => actions.again(clip), {icon: "again", title: "Fill in everything, for the next version"}),
      button(`Vary × ${NUM_VARIATIONS}`, () => actions.vary(clip, NUM_VARIATIONS), {
        icon: "vary",
        title: "The same with new seeds",
      }),
      this.compare,
    );
    this.gone = element(
      "div",
      {className: "row gone", hidden: true},
      element("span", {textContent: "The server no longer has this audio."}),
      button("Make it again", () => actions.remake(clip), {className: "secondary"}),
    );
    const foot = element("div", {className: "card-foot"}, details, this.toolbar);
    this.element = element(
      "article",
      {className: "card", "data-clip": clip.id},
      head,
      this.waveform.element,
      this.gone,
      foot,
    );
    this.update();
  }

  update() {
    const {clip} = this;
    this.waveform.setPeaks(clip.peaks);
    this.time.textContent = ago(clip.created);
    this.star.setAttribute("aria-pressed", String(clip.starred));
    setIcon(this.star, clip.starred ? "star-full" : "star");
    this.gone.hidden = !clip.gone;
    this.element.classList.toggle("is-gone", Boolean(clip.gone));
    this.waveform.setDisabled(Boolean(clip.gone));
    this.updatePlayer();
  }

  /** Show where the player is. */
  updatePlayer() {
    const {player} = this;
    const isCurrent = player.clip?.id === this.clip.id;
    const isPlaying = isCurrent && (player.playing || player.loading);
    setIcon(this.play, isPlaying ? "pause" : "play");
    this.play.setAttribute("aria-label", isPlaying ? "Pause" : "Play");
    this.element.classList.toggle("current", isCurrent);
    const letter = player.compared.findIndex(({id}) => id === this.clip.id);
    this.compare.setAttribute("aria-pressed", String(letter >= 0));
    this.compare.querySelector("span").textContent = letter >= 0 ? `A/B: ${"AB"[letter]}` : "A/B";
    this.waveform.setPosition(isCurrent ? player.position : 0);
  }

  toggle() {
    if (this.player.clip?.id === this.clip.id) this.player.toggle();
    else this.actions.play(this.clip, {offset: this.region?.[0] ?? 0, region: this.region});
  }

  #seek(seconds) {
    if (this.player.clip?.id === this.clip.id) this.player.seek(seconds);
    else this.actions.play(this.clip, {offset: seconds, region: null});
  }

  #setRegion(region) {
    this.region = region;
    if (this.player.clip?.id === this.clip.id) this.player.setRegion(region);
  }

  /** Where the user is in the clip, in seconds; where nobody is, its end. */
  #here() {
    const {player, region, clip} = this;
    const position = player.clip?.id === clip.id ? player.position : 0;
    const end = region ? region[1] : position >= SHORTEST_SOURCE ? position : clip.duration;
    return Math.round(100 * end) / 100;
  }

  #toggleLoop(item) {
    const {duration} = this.clip;
    this.#setRegion(this.region ? null : [duration / 4, (3 * duration) / 4]);
    this.waveform.setRegion(this.region);
    item.querySelector("span").textContent = this.region ? "Stop looping" : "Loop a part";
  }

  #menu() {
    const {clip, actions} = this;
    const formats = Object.entries(FORMATS).filter(([format]) => format !== clip.format);
    const format = element(
      "select",
      {"aria-label": "Download in another format"},
      element("option", {textContent: "Download as …", value: ""}),
      ...formats.map(([value, textContent]) => element("option", {value, textContent})),
    );
    format.addEventListener("change", () => {
      if (format.value) this.#choose(() => actions.download(clip, format.value));
      format.value = "";
    });
    const loop = button("Loop a part", () => this.#choose(() => this.#toggleLoop(loop)), {icon: "loop"});
    const items = [
      loop,
      button("Continue from here", () => this.#choose(() => actions.continueFrom(clip, this.#here())), {
        icon: "forward",
        title: "From the position, or the end of the loop",
      }),
      button("Use as melody", () => this.#choose(() => actions.useAsMelody(clip)), {icon: "melody"}),
      clip.fields.performance
        ? button("Save the recipe", () => this.#choose(() => actions.saveRecipe(clip)), {
            icon: "download",
            title: "The performance as JSON, for /generate",
          })
        : button("Copy link", () => this.#choose(() => actions.share(clip)), {icon: "link"}),
      button("Show request", () => this.#choose(() => actions.showRequest(clip)), {icon: "code"}),
      format,
      button("Delete", () => this.#choose(() => actions.remove(clip)), {icon: "trash", className: "quiet danger"}),
    ];
    const summary = element("summary", {className: "quiet", "aria-label": "More actions", title: "More actions"});
    summary.append(...button("", () => {}, {icon: "more", iconOnly: true}).children);
    this.menu = element("details", {className: "menu"}, summary, element("div", {className: "menu-items"}, ...items));
    return this.menu;
  }

  #choose(action) {
    this.menu.open = false;
    this.menu.querySelector("summary").focus();
    action();
  }
}
