import {ClipActions} from "./actions.js";
import {Announcer} from "./announcer.js";
import {Api} from "./api.js";
import {Composer} from "./composer.js";
import {button, byId, saveFile} from "./dom.js";
import {kindOf} from "./errors.js";
import {exportClips, History, importClips} from "./history.js";
import {Job, JobQueue} from "./job.js";
import {JobCard} from "./job-card.js";
import {KeyBox} from "./key-box.js";
import {connectKeys} from "./keyboard.js";
import {Library} from "./library.js";
import {Live} from "./live.js";
import {MelodyPicker} from "./melody-picker.js";
import {Player} from "./player.js";
import {RequestDialog} from "./request-dialog.js";
import {fieldsOf} from "./share.js";
import {Tabs} from "./tabs.js";
import {Transport} from "./transport.js";

const TOAST_MILLISECONDS = 6000;

/** The page: builds its parts and connects them. */
class Page {
  keyBox = new KeyBox();
  api = new Api(new URL(".", location.href).href, () => this.keyBox.key);
  history = new History();
  announcer = new Announcer(byId("announcements"));
  clipActions = new ClipActions(this);
  player = new Player((clip, context) => this.clipActions.load(clip, context));
  composer = new Composer(new MelodyPicker((bytes, sampleRate) => this.player.decode(bytes, sampleRate)));
  library = new Library(this.player, this.clipActions);
  live = new Live(this);
  modes = new Tabs(byId("modes"));
  queue = new JobQueue();
  requestDialog = new RequestDialog((text, what) => this.clipActions.copy(text, what));
  transport = new Transport(this.player, {
    titleOf: (clip) => clip.fields.prompt,
    hear: (index) => this.#hear(index),
    endComparison: () => this.#endComparison(),
  });
  toast = (text, undo) => this.#toast(text, undo);

  async open() {
    this.composer.addEventListener("submit", () => this.#generate());
    this.keyBox.addEventListener("change", () => this.#loadModels());
    this.player.addEventListener("change", () => this.#onPlayer());
    this.history.addEventListener("change", ({id, clip}) => this.library.replaceClip(id, clip));
    this.api.limits.addEventListener("change", () => this.#showLimits());
    addEventListener("hashchange", () => this.#fillFromLink());
    this.#connectLibraryTools();
    this.#connectMenus();
    connectKeys({
      player: this.player,
      playNumber: (number) => this.#playNumber(number),
      moveFocus: (step) => this.#moveFocus(step),
    });
    this.#fillFromLink();
    const clips = await this.history.all();
    this.library.addClips(clips);
    await this.#loadModels(clips[0]?.fields.model_size);
    document.documentElement.dataset.ready = "true";
  }

  /** Make a clip. With `listen`, it plays as soon as there is audio, unless something else plays. */
  start(request, {listen = true} = {}) {
    const job = new Job(this.api, request);
    const card = new JobCard(job, this.player, {
      listen: (one) => this.#listen(one),
      retry: (one, changes) => this.#retry(card, one, changes),
      edit: (one) => this.composer.fill(one.fields),
      dismiss: () => this.library.removeJob(card),
      askForKey: () => this.keyBox.open(),
      waitingNote: (one) => this.#waitingNote(one),
      otherModels: (one) => this.composer.modelsAtHand(one),
    });
    this.library.addJob(card);
    let isFirst = true;
    job.addEventListener("audio", ({block}) => {
      if (job.feed) job.feed.write(block);
      else if (isFirst && listen && !this.player.playing) this.#listen(job);
      isFirst = false;
    });
    job.addEventListener("change", () => this.announcer.progress(card.statusText));
    job.addEventListener("done", () => this.#onDone(job, card));
    job.addEventListener("canceled", () => this.#onCanceled(job, card));
    job.addEventListener("failed", () => this.#onFailed(job));
    this.queue.add(job);
    return job;
  }

  /** Keep a clip in the history, or say why the browser does not. */
  keep(clip) {
    return this.history.put(clip).catch((error) => this.toast(error.message));
  }

  /** Show the Live tab with the beginning of a clip's performance. */
  showLive({fields}) {
    this.modes.show(byId("live-tab"));
    this.live.fill(fields);
  }

  showClipForm() {
    this.modes.show(byId("clip-tab"));
  }

  #generate() {
    this.announcer.say("Sent to the server.");
    const {fields, melody} = this.composer;
    this.start({fields, melody: melody.value, source: melody.source});
    history.replaceState(null, "", location.pathname);
  }

  /** Play what has arrived of a job, the latest block included, and what comes. */
  #listen(job) {
    const feed = this.player.openStream({id: job.id, fields: job.fields, duration: job.fields.duration}, job.audio);
    job.feed = feed;
    for (const block of job.blocks) feed.write(block);
  }

  #retry(card, job, changes) {
    this.library.removeJob(card);
    if (changes?.prompt) this.composer.prompt.value = changes.prompt;
    if (changes?.model_size) this.composer.chooseModel(changes.model_size);
    const {melody, source} = job;
    const attempt = changes ? 1 : job.attempt + 1;
    this.start({fields: {...job.fields, ...changes}, melody, source, attempt});
  }

  async #onDone(job, card) {
    const {clip} = job;
    job.feed?.end();
    await this.keep(clip);
    const hadFocus = this.library.removeJob(card);
    this.library.addClips([clip]);
    if (hadFocus) this.library.cardOf(clip).play.focus();
    this.announcer.say(`The clip is ready: ${clip.fields.prompt}`);
    if (this.player.clip?.id === clip.id) await this.player.replaceStream(job.feed, clip).catch(() => {});
    if (!clip.peaks.length) await this.clipActions.describe(clip);
    this.#onPlayer();
    this.#refreshModels();
  }

  #onCanceled(job, card) {
    if (this.player.clip?.id === job.id) this.player.stop();
    this.library.removeJob(card);
    this.announcer.say("Canceled.");
  }

  #onFailed(job) {
    job.feed?.end(); // what has arrived plays to its end
    if (kindOf(job.error) === "limit") this.#refreshModels();
  }

  #waitingNote(job) {
    const model = this.composer.models.find(({name}) => name === job.fields.model_size);
    return model && !model.loaded
      ? `Waiting for the server, which loads the model ${model.name} first.`
      : "Waiting for the server.";
  }

  async #loadModels(wanted) {
    const note = byId("server-note");
    try {
      const models = await this.api.models();
      this.composer.setModels(models, wanted);
      this.live.panel.setModels(models);
      note.hidden = true;
    } catch (error) {
      const isKey = kindOf(error) === "key";
      const again = isKey
        ? button("Enter a key", () => this.keyBox.open(), {className: "secondary"})
        : button("Try again", () => this.#loadModels(wanted), {className: "secondary"});
      note.replaceChildren(isKey ? "This server needs an API key." : error.message, again);
      note.hidden = false;
      if (isKey && this.keyBox.key) this.keyBox.open(error.message);
    }
    byId("key-button").classList.toggle("on", this.keyBox.key !== null);
  }

  /** Learn which models are loaded now, and what is left of the limits; if that fails, the old list is good enough. */
  async #refreshModels() {
    await this.api.models().then(
      (models) => this.composer.setModels(models),
      () => {},
    );
  }

  #onPlayer() {
    this.library.updatePlayer();
    this.transport.update();
    if (this.player.playing && !this.frame) this.#animate();
  }

  #animate() {
    this.frame = requestAnimationFrame(() => {
      this.frame = null;
      this.library.updatePosition();
      this.transport.updatePosition();
      if (this.player.playing) this.#animate();
    });
  }

  #hear(index) {
    const clip = this.player.compared[index];
    if (this.player.playing) this.player.hear(clip);
    else this.clipActions.play(clip, {offset: this.player.position});
  }

  #endComparison() {
    this.player.compared = [];
    this.player.stop();
  }

  #playNumber(number) {
    const clip = this.library.visible[number - 1];
    if (clip) this.library.cardOf(clip).toggle();
  }

  #moveFocus(step) {
    const cards = this.library.visible.map((clip) => this.library.cardOf(clip));
    const index = cards.findIndex((card) => card.element.contains(document.activeElement));
    cards[Math.max(0, Math.min(cards.length - 1, index + step))]?.play.focus();
  }

  #fillFromLink() {
    const fields = fieldsOf(location.hash);
    if (fields) this.composer.fill(fields);
    if (location.hash === "#live") this.modes.show(byId("live-tab"));
  }

  #showLimits() {
    byId("limits").textContent = this.api.limits.sentences.join(" · ");
  }

  #connectLibraryTools() {
    const input = byId("import-file");
    byId("export").addEventListener("click", () => {
      saveFile(new Blob([exportClips(this.library.clips)], {type: "application/json"}), "audiocraft-clips.json");
    });
    for (const id of ["import", "import-first"]) byId(id).addEventListener("click", () => input.click());
    input.addEventListener("change", () => this.#import(input));
  }

  async #import(input) {
    const [file] = input.files;
    input.value = "";
    if (!file) return;
    try {
      const clips = importClips(await file.text());
      const before = this.library.clips.length;
      this.library.addClips(clips);
      await Promise.all(clips.map((clip) => this.history.put(clip)));
      this.toast(`${this.library.clips.length - before} clips were added.`);
    } catch (error) {
      this.toast(error.message);
    }
  }

  #connectMenus() {
    const close = (except) => {
      for (const menu of document.querySelectorAll("details.menu[open]")) if (menu !== except) menu.open = false;
    };
    addEventListener("click", ({target}) => close(target.closest("details.menu")));
    addEventListener("keydown", ({key, target}) => {
      if (key !== "Escape") return;
      target.closest?.("details.menu")?.querySelector("summary").focus();
      close(null);
    });
  }

  #toast(text, undo) {
    const box = byId("toast");
    const action = () => {
      undo.action();
      box.hidden = true;
    };
    box.replaceChildren(text, ...(undo ? [button(undo.label, action, {className: "link"})] : []));
    box.hidden = false;
    clearTimeout(this.toastTimer);
    this.toastTimer = setTimeout(() => (box.hidden = true), TOAST_MILLISECONDS);
  }
}

new Page().open();
