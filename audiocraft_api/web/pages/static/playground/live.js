import {kindOf, titleOf} from "./errors.js";
import {titleOfTexts} from "./fields.js";
import {brief, clock} from "./format.js";
import {describeAudio} from "./job.js";
import {LivePanel} from "./live-panel.js";
import {LiveSession} from "./live-session.js";
import {encodeWav, joinBlocks} from "./pcm.js";

const NAMES = {cfg_coef: "guidance", temperature: "temperature", top_k: "top-k", bpm: "tempo", key: "key"};

/** The Live tab: a session, its audio on the player, and at the end a clip that keeps the performance. */
export class Live {
  #session = null;
  #feed = null;
  #isOpening = false;
  #isPlaying = false;
  #texts = [];
  #beginning = null;
  panel = new LivePanel();

  /** `page` offers: api, player, library, announcer, keyBox, keep(clip). */
  constructor(page) {
    this.page = page;
    const {panel} = this;
    panel.addEventListener("start", () => this.#start());
    panel.addEventListener("prompts", () => this.#sendPrompts());
    panel.addEventListener("config", ({fields}) => this.#send({type: "config", ...fields}, wordsOf(fields)));
    panel.addEventListener("transition", () =>
      this.#session.send({type: "transition", seconds: panel.fields.transition}),
    );
    panel.addEventListener("reset", () => this.#send({type: "reset_context"}, "new music"));
    panel.addEventListener("back", ({entry}) => this.#goBack(entry));
    panel.addEventListener("pause", () => page.player.toggle());
    panel.addEventListener("stop", () => this.#stop());
    page.player.addEventListener("change", () => this.#onPlayer());
  }

  /** Fill in the form with the beginning of a performance. */
  fill({performance}) {
    const [{prompts, cfg_coef, temperature, top_k}] = performance.changes;
    const rows = prompts.map(({text, weight}) => ({text, weight: 100 * weight}));
    const largest = Math.max(...rows.map(({weight}) => Math.abs(weight)));
    for (const row of rows) row.weight *= 100 / largest;
    this.panel.restore({rows, controls: {cfg_coef, temperature, top_k, bpm: null, key: null}});
  }

  #start() {
    const {page, panel} = this;
    const {fields} = panel;
    page.player.stop();
    panel.clearEntries();
    panel.setState("starting");
    panel.setStatus("Waiting for the server.");
    panel.markSent();
    this.#beginning = {text: mixOf(fields.prompts), snapshot: panel.snapshot};
    this.id = crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`; // randomUUID needs HTTPS or localhost
    this.#texts = fields.prompts.map(({text}) => text);
    const session = new LiveSession(page.api, fields, () => this.#position);
    this.#session = session;
    session.addEventListener("audio", ({block}) => this.#onAudio(session, block));
    session.addEventListener("seek", ({frame}) => this.#openFeed(session, frame / session.info.frame_rate));
    session.addEventListener("answer", ({message, note}) => this.#onAnswer(session, message, note));
    session.addEventListener("ended", () => this.#onEnd(session));
    session.addEventListener("failed", () => this.#onEnd(session));
  }

  #stop() {
    this.#session?.stop();
    this.panel.setState("ending");
  }

  get #position() {
    return this.page.player.clip?.id === this.id ? this.page.player.position : 0;
  }

  #sendPrompts() {
    const {prompts} = this.panel.fields;
    this.#texts.push(...prompts.map(({text}) => text));
    this.#send({type: "prompts", prompts}, mixOf(prompts));
  }

  #send(message, text) {
    this.#session.send(message, {text, snapshot: this.panel.snapshot});
  }

  /** Go on from the moment of a change, which stays, with all controls of that moment. */
  #goBack(entry) {
    if (!this.#session?.info) return;
    this.panel.restore(entry.snapshot);
    this.panel.markSent();
    const {prompts, ...fields} = this.panel.fields;
    const {cfg_coef, temperature, top_k, bpm = null, key = null} = fields;
    this.#session.send({type: "config", cfg_coef, temperature, top_k, bpm, key});
    const position = (entry.frame + 1) / this.#session.info.frame_rate;
    this.#session.send({type: "seek_back", position, prompts}, {entry});
  }

  #onAudio(session, block) {
    if (this.#feed) this.#feed.write(block);
    else this.#openFeed(session, 0, block);
  }

  /** Play from a position on; what was on its way to the loudspeaker is dropped. */
  #openFeed(session, start, block = null) {
    const {player} = this.page;
    this.#isOpening = true;
    const clip = {id: this.id, fields: {prompt: titleOfTexts(this.#texts)}};
    Object.defineProperty(clip, "duration", {get: () => session.duration});
    const preroll = session.info.lead / 2; // the server sends no more than the lead ahead
    this.#feed = player.openStream(clip, {...session.audio, start, maxPrerollSeconds: preroll});
    this.#isOpening = false;
    this.#isPlaying = true;
    if (block) this.#feed.write(block);
    this.panel.setState("playing");
  }

  /** Pause and go on with the player, and end the session if something else plays. */
  #onPlayer() {
    const {player} = this.page;
    const session = this.#session;
    if (!session || !this.#feed || this.#isOpening || session.ended) return;
    if (player.clip?.id !== this.id) {
      if (this.panel.form.dataset.state !== "ending") this.#stop();
      return;
    }
    if (player.playing === this.#isPlaying) return;
    this.#isPlaying = player.playing;
    session.send({type: player.playing ? "play" : "pause"});
    this.panel.setState(player.playing ? "playing" : "paused");
  }

  #onAnswer(session, message, note) {
    const {panel} = this;
    const {announcer} = this.page;
    const handlers = {
      started: () => {
        panel.setStatus(`A change is heard after about ${brief(message.lead)}.`);
        panel.addEntry(0, 0, this.#beginning);
        announcer.say("The music begins.");
      },
      applied: () => {
        const seconds = message.frame / session.info.frame_rate;
        if (note?.entry) {
          panel.dropEntries(note.entry.frame);
          announcer.say(`Back to ${clock(seconds)}.`);
        } else if (note?.text) {
          panel.addEntry(message.frame, seconds, note);
          announcer.progress(`From ${clock(seconds)}: ${note.text}`);
        }
      },
      rejected: () => panel.setProblem(message.error),
      filtered_prompt: () => panel.setProblem([message.error, message.suggestion].filter(Boolean).join(" ")),
      underrun: () =>
        panel.setStatus(`The machine makes music at ${message.factor} times its speed. It waits for more.`),
      resumed: () => panel.setStatus("The music goes on."),
      ending: () => {
        panel.setState("ending");
        panel.setStatus(ENDINGS[message.reason] ?? "");
      },
    };
    handlers[message.type]?.();
  }

  async #onEnd(session) {
    const {panel, page} = this;
    this.#session = null;
    this.#feed?.end();
    panel.setState("idle");
    panel.setStatus(session.ended ? (ENDINGS[session.ended.reason] ?? "") : "");
    if (session.error) {
      panel.setProblem(`${titleOf(session.error)}. ${session.error.message}`);
      if (kindOf(session.error) === "key") page.keyBox.open(session.error.message);
    }
    if (session.performance && session.blocks.length) await this.#keep(session);
    this.#feed = null;
  }

  /** Make a clip of what was played. */
  async #keep(session) {
    const {page, id} = this;
    const {performance} = session;
    const {seed} = performance;
    const {sampleRate} = session.audio;
    const fields = {prompt: titleOfTexts(this.#texts), model_size: performance.model, duration: session.duration};
    const clip = {
      ...{id, created: Date.now(), seed, duration: session.duration, sampleRate, starred: false},
      ...{format: "wav", audioUrl: null, fields: {...fields, output_format: "wav", performance}},
    };
    const channels = joinBlocks(session.blocks);
    describeAudio(clip, channels, sampleRate);
    clip.audio = encodeWav(channels, sampleRate);
    await page.keep(clip);
    page.library.addClips([clip]);
    page.announcer.say("The performance is among the clips.");
    if (page.player.clip?.id === id) await page.player.replaceStream(this.#feed, clip).catch(() => {});
  }
}

const ENDINGS = {
  stopped: "The performance has ended.",
  limit: "The performance is as long as this server permits.",
  paused: "The performance was paused for too long, and has ended.",
  idle: "Nothing was changed for a long time, so the performance has ended.",
  quota: "Your audio for today is used up.",
  draining: "The server stops, and has ended the performance.",
};

/** Return the prompts in words, with their parts of the music. */
function mixOf(prompts) {
  const total = prompts.reduce((sum, {weight}) => sum + Math.max(0, weight), 0);
  if (prompts.length === 1) return prompts[0].text;
  return prompts
    .map(({text, weight}) => {
      const percent = Math.round((100 * Math.abs(weight)) / total);
      return `${weight < 0 ? "away from " : ""}${text} ${percent}\u00a0%`;
    })
    .join(", ");
}

const wordsOf = (fields) =>
  Object.entries(fields)
    .map(([name, value]) => `${NAMES[name]} ${value ?? "free"}`)
    .join(", ");
