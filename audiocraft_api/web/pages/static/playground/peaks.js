/** Collects the peaks of audio that arrives in blocks and whose length is known. */
export class PeakCollector {
  #framesPerBin;
  #position = 0;

  constructor(numFrames, numBins = 240) {
    this.peaks = new Float32Array(numBins);
    this.#framesPerBin = Math.max(1, numFrames / numBins);
  }

  /** Add a block: one Float32Array per channel. */
  add(block) {
    const last = this.peaks.length - 1;
    for (const samples of block) {
      for (let i = 0; i < samples.length; i++) {
        const bin = Math.min(last, Math.floor((this.#position + i) / this.#framesPerBin));
        const level = Math.abs(samples[i]);
        if (level > this.peaks[bin]) this.peaks[bin] = level;
      }
    }
    this.#position += block[0].length;
  }

  /** The part of the clip that has arrived, from 0 to 1. */
  get filled() {
    return Math.min(1, this.#position / (this.#framesPerBin * this.peaks.length));
  }

  /** The peaks as whole percents, which take little room in the history. */
  get compact() {
    return Array.from(this.peaks, (peak) => Math.round(100 * Math.min(1, peak)));
  }
}

/** Return the compact peaks of channels. */
export function peaksOf(channels) {
  const collector = new PeakCollector(channels[0].length);
  collector.add(channels);
  return collector.compact;
}
