import {button, byId, element, setIcon} from "./dom.js";
import {clock} from "./format.js";

/** The bar at the bottom: what plays, where it is, and which of two compared clips is heard. */
export class Transport {
  constructor(player, {titleOf, hear, endComparison}) {
    this.player = player;
    this.titleOf = titleOf;
    this.bar = byId("transport");
    this.play = button("Pause", () => player.toggle(), {icon: "pause", iconOnly: true, className: "play"});
    this.title = element("span", {className: "transport-title"});
    this.time = element("span", {className: "transport-time"});
    this.letters = ["A", "B"].map((letter, index) => button(letter, () => hear(index), {className: "letter"}));
    const end = button("End the comparison", endComparison, {icon: "close", iconOnly: true});
    this.comparison = element(
      "div",
      {className: "comparison", role: "group", "aria-label": "Compare"},
      ...this.letters,
      end,
    );
    this.bar.append(this.play, this.title, this.comparison, this.time);
  }

  update() {
    const {player} = this;
    const isOn = player.clip !== null || player.compared.length > 0;
    this.bar.hidden = !isOn;
    document.body.classList.toggle("has-transport", isOn);
    const isPlaying = player.playing || player.loading;
    this.play.disabled = !player.clip;
    setIcon(this.play, isPlaying ? "pause" : "play");
    this.play.setAttribute("aria-label", isPlaying ? "Pause" : "Play");
    this.title.textContent = player.clip ? this.titleOf(player.clip) : "";
    this.comparison.hidden = !player.compared.length;
    this.letters.forEach((letter, index) => {
      const clip = player.compared[index];
      letter.disabled = !clip;
      letter.setAttribute("aria-pressed", String(Boolean(clip) && clip.id === player.clip?.id));
    });
    if (player.compared.length === 1) this.title.textContent = "Choose a second clip with its A/B button.";
    this.updatePosition();
  }

  updatePosition() {
    const {player} = this;
    const waits = player.loading || (player.streaming && player.filling && player.playing);
    const time = `${clock(player.position)} / ${clock(player.duration)}`;
    this.time.textContent = player.clip ? (waits ? "Buffering …" : time) : "";
  }
}
