const WORKLET = new URL("./stream-worklet.js", import.meta.url);
const PREROLL_SECONDS = 0.4;
const BLOCK_FRAMES = 128; // an AudioWorklet renders this many frames at a time
const SWAP_SECONDS = 0.15; // enough for the message to reach the worklet

/** The audio of one stream on its way to the loudspeaker. Blocks may arrive before the worklet has been loaded. */
export class StreamFeed {
  #context;
  #waiting = [];
  #node = null;
  #settle;
  #start;
  /** Resolved when the audio is complete and runs without a further pause, or is paused by the user. */
  settled = new Promise((resolve) => (this.#settle = resolve));
  report = {position: 0, time: 0, filling: true, underruns: 0, ended: false, finished: false, paused: false};

  /** The first block is the audio at `start` seconds. `maxPrerollSeconds` bounds what is collected after a gap. */
  constructor(context, {channels, start = 0, maxPrerollSeconds = 4, onreport = () => {}}) {
    const {destination} = context;
    this.#context = context;
    this.#start = start;
    this.report.position = start;
    this.onreport = onreport;
    this.ready = this.#open(channels, maxPrerollSeconds, destination);
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

  /** Stop soon, at a block boundary. Return when, and the position in the audio at which another source continues. */
  handOver() {
    const {sampleRate, currentTime} = this.#context;
    const {position, time} = this.report;
    const stopFrame = Math.ceil(((currentTime + SWAP_SECONDS) * sampleRate) / BLOCK_FRAMES) * BLOCK_FRAMES;
    this.#post({stopFrame});
    return {at: stopFrame / sampleRate, offset: position + stopFrame / sampleRate - time};
  }

  close() {
    this.#settle();
    this.#node?.disconnect();
    this.#node?.port.close();
    this.#node = null;
  }

  async #open(channels, maxPrerollSeconds, destination) {
    const context = this.#context;
    context.streamWorklet ??= context.audioWorklet.addModule(WORKLET);
    await context.streamWorklet;
    this.#node = new AudioWorkletNode(context, "stream", {
      numberOfInputs: 0,
      outputChannelCount: [channels],
      processorOptions: {channels, prerollSeconds: PREROLL_SECONDS, maxPrerollSeconds},
    });
    this.#node.port.onmessage = ({data}) => {
      this.report = {...data, position: this.#start + data.position};
      if (data.ended && (data.paused || !data.filling)) this.#settle();
      this.onreport(this.report);
    };
    this.#node.connect(destination);
    for (const message of this.#waiting) this.#node.port.postMessage(message);
    this.#waiting = [];
  }

  #post(message) {
    if (this.#node) this.#node.port.postMessage(message);
    else this.#waiting.push(message);
  }
}
