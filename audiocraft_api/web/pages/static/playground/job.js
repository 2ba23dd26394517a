import {generate} from "./generate.js";
import {loudnessOf} from "./loudness.js";
import {PeakCollector, peaksOf} from "./peaks.js";
import {encodeWav, joinBlocks} from "./pcm.js";

// The server has room for fewer requests at once than this page has sent.
const CROWDED = ["too_many_streams", "too_many_requests_at_once", "queue_full"];

/**
 * One clip while it is made. It dispatches `change`, `audio` for every block, and at the end `done`, `failed` or
 * `canceled`. A job runs once.
 */
export class Job extends EventTarget {
  #abort = new AbortController();
  id = crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`; // randomUUID needs HTTPS or localhost
  state = "waiting"; // waiting, starting, running, done, failed, canceled
  progress = null; // {current, total, eta}
  position = null; // in the queue
  blocks = [];
  audio = null; // {channels, sampleRate}
  collector = null;
  error = null;
  clip = null;

  /**
   * `source` is the audio to continue: {blob, name, end, id, url}, with the `id` of the clip that it comes from or
   * null, and the `url` at which the server has it, if it does.
   */
  constructor(api, {fields, melody = null, source = null, attempt = 1}) {
    super();
    this.attempt = attempt;
    this.api = api;
    this.fields = fields;
    this.melody = melody;
    this.source = source;
  }

  get ended() {
    return ["done", "failed", "canceled"].includes(this.state);
  }

  cancel() {
    this.#abort.abort(new DOMException("Canceled", "AbortError"));
    if (this.state === "waiting") this.#end("canceled");
  }

  /** Run to an end; or, if the server runs as many requests of the caller as it may, `canWait` lets it wait again. */
  async run(canWait = () => false) {
    this.#to("starting");
    const on = {
      accepted: ({seed}) => (this.fields = {...this.fields, seed}),
      waiting: ({position, eta}) => this.#to("starting", {position, progress: {current: 0, total: 0, eta}}),
      progress: (progress) => this.#to(progress.total ? "running" : "starting", {progress, position: null}),
      audio: (piece) => this.#onAudio(piece),
    };
    try {
      const result = await generate(this.api, this, on, this.#abort.signal);
      this.clip = await this.#clipOf(result);
      return this.#end("done");
    } catch (error) {
      if (CROWDED.includes(error.code) && !this.blocks.length && canWait()) return this.#to("waiting");
      this.error = error;
      return this.#end(this.#abort.signal.aborted || error.name === "AbortError" ? "canceled" : "failed");
    }
  }

  #onAudio({block, channels, sampleRate}) {
    this.audio ??= {channels, sampleRate};
    this.collector ??= new PeakCollector(this.fields.duration * sampleRate);
    this.collector.add(block);
    this.blocks.push(block);
    this.#to("running");
    this.dispatchEvent(Object.assign(new Event("audio"), {block}));
  }

  async #clipOf({seed, duration, sample_rate: sampleRate, audio_url: audioUrl = null}) {
    const {output_format: format} = this.fields;
    const common = {id: this.id, created: Date.now(), fields: {...this.fields, seed}, seed, duration, sampleRate};
    const clip = {...common, format, audioUrl, peaks: [], loudness: null, starred: false};
    if (this.melody) Object.assign(clip, {melody: this.melody, melodyName: this.melody.name});
    if (this.source) {
      const {id, name, end, url} = this.source;
      clip.continues = {id, name, end, url};
    }
    if (this.source && this.source.id === null) clip.source = this.source; // an upload, which is nowhere else
    if (this.blocks.length) {
      const channels = joinBlocks(this.blocks);
      describeAudio(clip, channels, sampleRate);
      if (!audioUrl) Object.assign(clip, {audio: encodeWav(channels, sampleRate), format: "wav"});
    }
    return clip;
  }

  #to(state, changes = {}) {
    Object.assign(this, changes, {state});
    this.dispatchEvent(new Event("change"));
  }

  #end(state) {
    if (this.ended) return;
    this.#to(state);
    this.dispatchEvent(new Event(state));
  }
}

/** Set the peaks and the loudness of a clip from its channels. */
export function describeAudio(clip, channels, sampleRate) {
  clip.peaks = peaksOf(channels);
  const loudness = loudnessOf(channels, sampleRate);
  clip.loudness = Number.isFinite(loudness) ? Math.round(loudness * 10) / 10 : null;
}

/**
 * Runs jobs, at most `limit` at a time, in the order of their arrival. If the server has room for fewer, the others
 * wait for those that run.
 */
export class JobQueue {
  #waiting = [];
  #running = 0;

  constructor(limit = 2) {
    this.limit = limit;
  }

  add(job) {
    this.#waiting.push(job);
    this.#next();
  }

  async #next() {
    if (this.#running >= this.limit) return;
    const job = this.#waiting.shift();
    if (!job) return;
    if (!job.ended) {
      this.#running++;
      await job.run(() => this.#running > 1).finally(() => this.#running--);
      if (!job.ended) {
        this.#waiting.unshift(job);
        this.limit = Math.max(1, this.#running);
      }
    }
    this.#next();
  }
}
