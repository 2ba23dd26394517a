import {RingBuffer} from "./ring-buffer.js";

const REPORT_SECONDS = 0.05;

/**
 * Plays a stream. Messages to it: {block}, {end}, {paused}, {stop}. It reports where it is several times a second,
 * with the context's time at which that position is heard.
 */
class StreamProcessor extends AudioWorkletProcessor {
  #ring;
  #paused = false;
  #stopped = false;
  #reportFrame = 0;

  constructor({processorOptions: {channels, ...options}}) {
    super();
    this.#ring = new RingBuffer(channels, sampleRate, options);
    this.port.onmessage = ({data}) => this.#receive(data);
  }

  process(_inputs, [outputs]) {
    if (!this.#paused && !this.#stopped) this.#ring.read(outputs);
    const finished = this.#stopped || this.#ring.finished;
    if (finished || currentFrame >= this.#reportFrame) this.#report(finished);
    return !finished;
  }

  #receive({block, end, paused, stop}) {
    if (block) this.#ring.write(block);
    if (end) this.#ring.end();
    if (paused !== undefined) this.#paused = paused;
    if (stop) this.#stopped = true;
  }

  #report(finished) {
    const {position, filling, underruns, ended} = this.#ring;
    this.#reportFrame = currentFrame + REPORT_SECONDS * sampleRate;
    const time = (currentFrame + 128) / sampleRate; // the end of this block
    const state = {filling, underruns, ended, finished, paused: this.#paused};
    this.port.postMessage({position: position / sampleRate, time, ...state});
  }
}

registerProcessor("stream", StreamProcessor);
