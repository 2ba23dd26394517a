import {matchingGains} from "./loudness.js";
import {StreamFeed} from "./stream-feed.js";

const START_SECONDS = 0.02;
const FADE_SECONDS = 0.008;
const MAX_BUFFERS = 6;

/**
 * The one transport of the page. It plays a stream that is still being made, one clip, or two clips in parallel, of
 * which one is heard. It dispatches `change` whenever something but the position changes.
 */
export class Player extends EventTarget {
  #context = null;
  #load;
  #buffers = new Map();
  #feed = null;
  #file = null; // {clip, buffer} of the stream that plays, once it is finished
  #tracks = [];
  #startTime = 0;
  #offset = 0;
  #request = 0;
  clip = null;
  playing = false;
  loading = false;
  region = null; // [start, end] in seconds: loops
  compared = []; // two clips

  /** `load(clip, context)` returns the AudioBuffer of a finished clip. */
  constructor(load) {
    super();
    this.#load = load;
  }

  /** Whether the clip that plays is still being made. */
  get streaming() {
    return this.#feed !== null;
  }

  /** Whether the stream waits for more audio. */
  get filling() {
    return this.#feed?.report.filling ?? false;
  }

  get position() {
    if (this.#feed) return this.#feed.position;
    if (!this.playing) return this.#offset;
    const position = this.#offset + Math.max(0, this.#context.currentTime - this.#startTime);
    if (!this.region) return Math.min(position, this.duration);
    const [start, end] = this.region;
    return position < end ? position : start + ((position - start) % (end - start));
  }

  get duration() {
    return Math.max(0, ...this.#tracks.map((track) => track.buffer.duration)) || (this.clip?.duration ?? 0);
  }

  /** Start to play a stream. Return its feed. */
  openStream(clip, {sampleRate, ...options}) {
    this.stop();
    const context = this.#contextFor(sampleRate);
    this.clip = clip;
    this.playing = true;
    const feed = new StreamFeed(context, {...options, onreport: (report) => this.#onReport(feed, report)});
    this.#feed = feed;
    this.#changed();
    return feed;
  }

  /**
   * Use the finished clip for whatever the user does next. Until then its stream plays on, which has the same samples:
   * a change in the middle would depend on the page's thread to be in time, and leave a gap on a busy processor.
   */
  async replaceStream(feed, clip) {
    const buffer = await this.#bufferOf(clip);
    if (this.clip?.id === clip.id) this.clip = clip;
    if (this.#feed === feed) this.#file = {clip, buffer};
    this.#changed();
  }

  /** Play a finished clip, or continue to. With `compared` clips, both run and `clip` is heard. */
  async play(clip, {offset, region = null} = {}) {
    const position = offset ?? (this.clip?.id === clip.id ? this.#resumeAt() : 0);
    const isCompared = this.compared.some(({id}) => id === clip.id);
    const clips = isCompared && this.compared.length === 2 ? this.compared : [clip];
    this.stop();
    const request = ++this.#request;
    this.#contextFor(clip.sampleRate);
    this.clip = clip;
    this.loading = true;
    this.#changed();
    try {
      const buffers = await Promise.all(clips.map((one) => this.#bufferOf(one)));
      if (request !== this.#request) return;
      this.region = region;
      this.#startTracks(
        clips.map((one, i) => ({clip: one, buffer: buffers[i]})),
        position,
      );
      this.playing = true;
    } finally {
      if (request === this.#request) {
        this.loading = false;
        this.#changed();
      }
    }
  }

  pause() {
    if (!this.playing) return;
    this.#leaveStream();
    this.#offset = this.position;
    this.playing = false;
    if (this.#feed) this.#feed.setPaused(true);
    else this.#stopTracks();
    this.#changed();
  }

  resume() {
    if (!this.clip || this.playing) return undefined;
    this.#leaveStream();
    if (!this.#feed) return this.play(this.clip, {region: this.region});
    this.#feed.setPaused(false);
    this.playing = true;
    return this.#changed();
  }

  toggle() {
    return this.playing ? this.pause() : this.resume();
  }

  /** Move to a position in seconds. Has no effect on a stream that is not finished. */
  seek(position) {
    this.#leaveStream();
    if (this.#feed || !this.clip) return;
    this.#offset = Math.max(0, Math.min(position, this.duration));
    if (this.region && (this.#offset < this.region[0] || this.#offset >= this.region[1])) this.#offset = this.region[0];
    if (this.playing) this.#startTracks(this.#tracks, this.#offset);
    this.#changed();
  }

  /** Loop a part of the clip, or with null play on. */
  setRegion(region) {
    const position = this.position;
    this.region = region;
    this.seek(position);
  }

  /** Let the other of the two compared clips be heard, at the same position. */
  hear(clip) {
    this.clip = clip;
    const now = this.#context.currentTime;
    for (const track of this.#tracks) {
      track.gain?.gain.setTargetAtTime(track.clip.id === clip.id ? track.level : 0, now, FADE_SECONDS);
    }
    this.#changed();
  }

  /** Stop, and forget what was playing. */
  stop() {
    this.#request++;
    this.#stopTracks();
    this.#tracks = [];
    this.#feed?.close();
    this.#feed = this.#file = null;
    Object.assign(this, {clip: null, playing: false, loading: false, region: null});
    this.#offset = 0;
    this.#changed();
  }

  /** Decode audio of the given sample rate, as `load` does. */
  decode(bytes, sampleRate) {
    return this.#contextFor(sampleRate).decodeAudioData(bytes);
  }

  /** Forget the decoded audio of a clip. */
  forget(clip) {
    this.#buffers.delete(clip.id);
    if (this.clip?.id === clip.id) this.stop();
  }

  async #bufferOf(clip) {
    const buffer = this.#buffers.get(clip.id) ?? (await this.#load(clip, this.#context));
    this.#buffers.delete(clip.id);
    this.#buffers.set(clip.id, buffer);
    if (this.#buffers.size > MAX_BUFFERS) this.#buffers.delete(this.#buffers.keys().next().value);
    return buffer;
  }

  #contextFor(sampleRate) {
    // At the rate of the clip, the context gets exactly its samples, and nothing but the device resamples them.
    if (this.#context && this.#context.sampleRate !== sampleRate) {
      this.#context.close();
      this.#context = null;
      this.#buffers.clear();
    }
    this.#context ??= new AudioContext({sampleRate});
    if (this.#context.state === "suspended") this.#context.resume();
    return this.#context;
  }

  #resumeAt() {
    const position = this.position;
    return position < this.duration - 0.05 ? position : 0;
  }

  #startTracks(tracks, offset, at = this.#context.currentTime + START_SECONDS) {
    this.#stopTracks();
    const gains = tracks.length > 1 ? matchingGains(tracks.map(({clip}) => clip.loudness)) : [1];
    this.#tracks = tracks.map(({clip, buffer}, i) => this.#startTrack(clip, buffer, gains[i], offset, at));
    this.#offset = offset;
    this.#startTime = at;
  }

  #startTrack(clip, buffer, level, offset, at) {
    const gain = new GainNode(this.#context, {gain: clip.id === this.clip.id ? level : 0});
    const source = new AudioBufferSourceNode(this.#context, {buffer, loop: Boolean(this.region)});
    if (this.region) [source.loopStart, source.loopEnd] = this.region;
    source.connect(gain).connect(this.#context.destination);
    source.onended = () => this.#onEnded(source);
    source.start(at, Math.min(offset, buffer.duration));
    return {clip, buffer, level, gain, source};
  }

  #stopTracks() {
    for (const track of this.#tracks) {
      if (!track.source) continue;
      track.source.onended = null;
      track.gain.gain.setTargetAtTime(0, this.#context.currentTime, FADE_SECONDS / 3);
      track.source.stop(this.#context.currentTime + 2 * FADE_SECONDS);
      track.source = null;
    }
  }

  #onEnded(source) {
    if (
      this.#tracks.some((track) => track.source && track.source !== source && track.buffer.duration > this.position)
    ) {
      return;
    }
    this.#finish();
  }

  #onReport(feed, {finished}) {
    if (this.#feed !== feed || !finished) return;
    this.#closeStream();
    this.#finish();
  }

  #finish() {
    this.playing = false;
    this.#offset = 0;
    this.#stopTracks();
    this.#changed();
    this.dispatchEvent(new Event("ended"));
  }

  /** End the stream if its clip is finished, so that the clip can go on from there. */
  #leaveStream() {
    if (!this.#file) return;
    const {position} = this.#feed;
    this.#closeStream();
    this.#offset = position;
    this.#startTime = this.#context.currentTime;
  }

  #closeStream() {
    this.#feed.close();
    this.#tracks = this.#file ? [this.#file] : [];
    this.#feed = this.#file = null;
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}
