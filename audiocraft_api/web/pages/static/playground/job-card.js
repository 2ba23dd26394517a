import {button, element, setIcon} from "./dom.js";
import {kindOf, suggestedPrompts, titleOf} from "./errors.js";
import {inWords, timeOfDay} from "./format.js";
import {Waveform} from "./waveform.js";

const LONGEST_WAIT = 120; // seconds
const MAX_ATTEMPTS = 5;

/** The card of a clip that is being made, or that could not be made. */
export class JobCard {
  #waveform;
  #timer = null;

  /**
   * `actions`: listen(job), retry(job, changes?), edit(job), dismiss(job), askForKey(), waitingNote(job),
   * otherModels(job).
   */
  constructor(job, player, actions) {
    this.job = job;
    this.player = player;
    this.actions = actions;
    const {prompt, duration} = job.fields;
    this.play = button("Listen", () => this.#onPlay(), {icon: "play", iconOnly: true, className: "play"});
    this.status = element("p", {className: "status"});
    this.cancel = button("Cancel", () => job.cancel());
    this.#waveform = new Waveform({label: `Position in: ${prompt}`, duration, onseek: () => {}});
    this.#waveform.setDisabled(true);
    this.meter = element("progress", {max: 1, "aria-label": "Progress"});
    this.meter.removeAttribute("value");
    const head = element("div", {className: "card-head"}, this.play, element("h3", {textContent: prompt}), this.cancel);
    this.element = element("article", {className: "card job"}, head, this.#waveform.element, this.meter, this.status);
    job.addEventListener("change", () => this.update());
    this.update();
  }

  update() {
    const {job} = this;
    if (job.state === "failed") return this.#showFailure();
    if (job.collector)
      this.#waveform.setPeaks(
        Array.from(job.collector.peaks, (peak) => 100 * peak),
        job.collector.filled,
      );
    if (job.progress?.total) this.meter.value = job.progress.current / job.progress.total;
    this.status.textContent = this.statusText;
    return this.updatePlayer();
  }

  /** Show where the player is. */
  updatePlayer() {
    const isCurrent = this.player.clip?.id === this.job.id;
    this.play.disabled = !this.job.audio;
    setIcon(this.play, isCurrent && this.player.playing ? "pause" : "play");
    this.play.setAttribute("aria-label", isCurrent && this.player.playing ? "Pause" : "Listen");
    this.element.classList.toggle("current", isCurrent);
    this.#waveform.setPosition(isCurrent ? this.player.position : 0);
  }

  get statusText() {
    const {state, position, progress} = this.job;
    const left = progress?.eta ? `about ${inWords(Math.max(1, Math.round(progress.eta)))} left` : "";
    if (state === "waiting") return "Waits for your other clips.";
    if (state === "starting") {
      if (!position) return this.actions.waitingNote(this.job);
      return [`Number ${position} in the queue`, left].filter(Boolean).join(" · ");
    }
    const percent = progress?.total ? `${Math.floor((100 * progress.current) / progress.total)} %` : "";
    return ["Making the music", percent, left].filter(Boolean).join(" · ");
  }

  #onPlay() {
    if (this.player.clip?.id === this.job.id) this.player.toggle();
    else this.actions.listen(this.job);
  }

  #showFailure() {
    const {error} = this.job;
    const buttons = element("div", {className: "row"});
    const kind = kindOf(error);
    if (kind === "refused" && this.job.fields.segments) {
      buttons.append(button("Change the sections", () => this.actions.edit(this.job), {className: "secondary"}));
    } else if (kind === "refused") {
      for (const prompt of suggestedPrompts(error.suggestion)) {
        buttons.append(this.#chip(`Try “${prompt}”`, {prompt}));
      }
    } else if (kind === "key") {
      buttons.append(
        button("Enter a key", () => this.actions.askForKey(), {className: "secondary"}),
        this.#retryButton(),
      );
    } else if (kind === "model") {
      for (const name of this.actions.otherModels(this.job)) {
        buttons.append(this.#chip(`Use ${name}`, {model_size: name}));
      }
      buttons.append(this.#retryButton());
    } else if (kind !== "invalid") {
      buttons.append(this.#retryButton());
    }
    buttons.append(button("Dismiss", () => this.#leave(() => this.actions.dismiss(this.job))));
    const notice = [element("h4", {textContent: titleOf(error)}), element("p", {textContent: error.message})];
    if (kind === "refused" && error.suggestion) notice.push(element("p", {textContent: error.suggestion}));
    const countdown = error.retryAfter && kind !== "model" ? this.#countdown(error.retryAfter) : null;
    const text = element("div", {className: "notice-text", role: "alert"}, ...notice);
    this.element.classList.add("failed");
    this.element.replaceChildren(
      element("h3", {textContent: this.job.fields.prompt}),
      text,
      ...[countdown, buttons].filter(Boolean),
    );
  }

  /** Create a button that tries again with other fields. */
  #chip(textContent, changes) {
    const onclick = () => this.#leave(() => this.actions.retry(this.job, changes));
    return element("button", {type: "button", className: "chip", textContent, onclick});
  }

  #retryButton() {
    return button("Try again", () => this.#leave(() => this.actions.retry(this.job)), {className: "secondary"});
  }

  /** Count down to the next try, which happens by itself if it is near: the server said when. */
  #countdown(seconds) {
    const until = Date.now() + 1000 * seconds;
    const line = element("p", {className: "countdown"});
    const isAutomatic = seconds <= LONGEST_WAIT && this.job.attempt < MAX_ATTEMPTS;
    if (!isAutomatic) {
      const when = seconds > LONGEST_WAIT ? `at ${timeOfDay(until)}` : `in ${inWords(seconds)}`;
      line.textContent = `The next try can succeed ${when}.`;
      return line;
    }
    const show = () => {
      const left = Math.ceil((until - Date.now()) / 1000);
      line.textContent = left > 0 ? `Tries again in ${inWords(left)}.` : "Tries again …";
      if (left <= 0) this.#leave(() => this.actions.retry(this.job));
    };
    this.#timer = setInterval(show, 1000);
    show();
    return line;
  }

  #leave(action) {
    clearInterval(this.#timer);
    action();
  }
}
