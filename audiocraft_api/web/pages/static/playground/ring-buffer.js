
/**
 * The buffer between a stream that arrives in blocks and an audio device that takes 128 frames at a time.
 *
 * It plays nothing until `prerollSeconds` of audio are there or the stream has ended. If the audio runs out before the
 * end, it fades out over the last frames, waits for more than before, and fades in. No sample is skipped or repeated.
 * The buffer grows: a fast server sends a clip in a fraction of its length.
 */
export class RingBuffer {
  #rings;
  #capacity;
  #start = 0;
  #fadeStep;
  #gain = 1;
  #filling = true;
  #prerollFrames;
  #maxPrerollFrames;
  available = 0;
  position = 0;
  underruns = 0;
  ended = false;

  constructor(channels, sampleRate, {prerollSeconds = 0.4, maxPrerollSeconds = 4, fadeSeconds = 0.01} = {}) {
    this.#capacity = 8 * sampleRate;
    this.#rings = Array.from({length: channels}, () => new Float32Array(this.#capacity));
    this.#fadeStep = 1 / (fadeSeconds * sampleRate);
    this.#maxPrerollFrames = maxPrerollSeconds * sampleRate;
    this.#prerollFrames = Math.min(prerollSeconds * sampleRate, this.#maxPrerollFrames);
  }

  /** Whether no audio is left and none will come. */
  get finished() {
    return this.ended && !this.available;
  }

  /** Whether it waits for audio instead of playing. */
  get filling() {
    return this.#filling;
  }

  /** Append a block: one Float32Array per channel. */
  write(block) {
    const length = block[0].length;
    if (this.available + length > this.#capacity) this.#grow(this.available + length);
    const first = (this.#start + this.available) % this.#capacity;
    const fitting = Math.min(length, this.#capacity - first);
    this.#rings.forEach((ring, channel) => {
      ring.set(block[channel].subarray(0, fitting), first);
      ring.set(block[channel].subarray(fitting), 0);
    });
    this.available += length;
  }

  /** No more blocks will come. */
  end() {
    this.ended = true;
  }

  /** Fill `outputs`, one array per channel, with audio or silence. A mono stream fills every channel. */
  read(outputs) {
    const length = outputs[0].length;
    if (this.#filling && (this.ended || this.available >= this.#prerollFrames)) this.#filling = false;
    const frames = this.#filling ? 0 : Math.min(length, this.available);
    for (let i = 0; i < frames; i++) {
      this.#moveGain(this.available - i);
      const index = (this.#start + i) % this.#capacity;
      outputs.forEach((output, channel) => {
        output[i] = this.#gain * this.#rings[Math.min(channel, this.#rings.length - 1)][index];
      });
    }
    for (const output of outputs) output.fill(0, frames);
    this.#start = (this.#start + frames) % this.#capacity;
    this.available -= frames;
    this.position += frames;
    if (!this.available && !this.ended && !this.#filling) this.#refill();
  }

  #moveGain(remaining) {
    if (this.ended) this.#gain = Math.min(1, this.#gain + this.#fadeStep);
    else this.#gain = Math.min(1, this.#gain + this.#fadeStep, (remaining - 1) * this.#fadeStep);
  }

  #refill() {
    this.#filling = true;
    this.#gain = 0;
    this.underruns += 1;
    this.#prerollFrames = Math.min(2 * this.#prerollFrames, this.#maxPrerollFrames);
  }

  #grow(needed) {
    const capacity = 2 ** Math.ceil(Math.log2(needed));
    this.#rings = this.#rings.map((ring) => {
      const larger = new Float32Array(capacity);
      const fitting = Math.min(this.available, this.#capacity - this.#start);
      larger.set(ring.subarray(this.#start, this.#start + fitting));
      larger.set(ring.subarray(0, this.available - fitting), fitting);
      return larger;
    });
    this.#capacity = capacity;
    this.#start = 0;
  }
}
