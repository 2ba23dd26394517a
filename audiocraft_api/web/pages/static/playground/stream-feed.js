const WORKLET = new URL("./stream-worklet.js", import.meta.url);
const PREROLL_SECONDS = 0.4;
const FADE_SECONDS = 0.008;

/** The audio of one stream on its way to the loudspeaker. Blocks may arrive before the worklet has been loaded. */
export class StreamFeed {
  #context;
  #waiting = [];
  #node = null;
  #gain;
  #isClosed = false;
  #start;
  report = {position: 0, time: 0, filling: true, underruns: 0, ended: false, finished: false, paused: false};

  /** The first block is the audio at `start` seconds. `maxPrerollSeconds` bounds what is collected after a gap. */
  constructor(context, {channels, start = 0, maxPrerollSeconds = 4, onreport = () => {}}) {
    this.#context = context;
    this.#gain = new GainNode(context);
    this.#gain.connect(context.destination);
    this.#start = start;
    this.report.position = start;
    this.onreport = onreport;
    this.ready = this.#open(channels, maxPrerollSeconds);
  }

  write(block) {
    this.#post({block});
  }

  end() {
    this.#post({end: true});
  }

  setPaused(paused) {
    this.report = {...this.report, position: this.position, time: this.#context.currentTime, paused};
    this.#post({paused});
  }

  /** The position that is heard now, in seconds. */
  get position() {
    const {position, time, filling, paused, finished} = this.report;
    const moving = this.#node && position > this.#start && !filling && !paused && !finished;
    return moving ? position + Math.max(0, this.#context.currentTime - time) : position;
  }

  /** Fade out, and stop. */
  close() {
    const node = this.#node;
    this.#node = null;
    this.#isClosed = true;
    this.#gain.gain.setTargetAtTime(0, this.#context.currentTime, FADE_SECONDS / 3);
    setTimeout(() => {
      this.#gain.disconnect();
      node?.port.postMessage({stop: true});
    }, 4000 * FADE_SECONDS);
  }

  async #open(channels, maxPrerollSeconds) {
    const context = this.#context;
    context.streamWorklet ??= context.audioWorklet.addModule(WORKLET);
    await context.streamWorklet;
    if (this.#isClosed) return;
    this.#node = new AudioWorkletNode(context, "stream", {
      numberOfInputs: 0,
      outputChannelCount: [channels],
      processorOptions: {channels, prerollSeconds: PREROLL_SECONDS, maxPrerollSeconds},
    });
    this.#node.port.onmessage = ({data}) => {
      this.report = {...data, position: this.#start + data.position};
      this.onreport(this.report);
    };
    this.#node.connect(this.#gain);
    for (const message of this.#waiting) this.#node.port.postMessage(message);
    this.#waiting = [];
  }

  #post(message) {
    if (this.#node) this.#node.port.postMessage(message);
    else if (!this.#isClosed) this.#waiting.push(message);
  }
}
