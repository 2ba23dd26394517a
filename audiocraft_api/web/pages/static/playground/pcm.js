const HEADER_BYTES = 44;

/** Reads a WAV stream of 16-bit samples whose length may be unknown, in pieces of any size. */
export class WavReader {
  #rest = new Uint8Array(0);
  channels = 0;
  sampleRate = 0;

  /** Return the samples of the next piece, one Float32Array per channel; null if there is no whole frame. */
  read(bytes) {
    const data = new Uint8Array(this.#rest.length + bytes.length);
    data.set(this.#rest);
    data.set(bytes, this.#rest.length);
    let start = 0;
    if (!this.channels) {
      if (data.length < HEADER_BYTES) return this.#keep(data);
      this.#readHeader(new DataView(data.buffer));
      start = HEADER_BYTES;
    }
    const frameBytes = 2 * this.channels;
    const frames = Math.floor((data.length - start) / frameBytes);
    const blocks = deinterleave(new DataView(data.buffer, start, frames * frameBytes), this.channels);
    this.#keep(data.slice(start + frames * frameBytes));
    return frames ? blocks : null;
  }

  #keep(rest) {
    this.#rest = rest;
    return null;
  }

  #readHeader(view) {
    if (view.getUint32(0) !== 0x52494646 || view.getUint16(34, true) !== 16) {
      throw new Error("The stream is not a WAV file with 16-bit samples.");
    }
    this.channels = view.getUint16(22, true);
    this.sampleRate = view.getUint32(24, true);
  }
}

/** Return the samples of interleaved 16-bit PCM, one Float32Array per channel. */
export function deinterleave(view, channels) {
  const frames = view.byteLength / 2 / channels;
  const blocks = Array.from({length: channels}, () => new Float32Array(frames));
  for (let frame = 0, offset = 0; frame < frames; frame++) {
    for (const block of blocks) {
      block[frame] = view.getInt16(offset, true) / 32768;
      offset += 2;
    }
  }
  return blocks;
}

/** Join blocks, each a list of channels, into one Float32Array per channel. */
export function joinBlocks(blocks) {
  const length = blocks.reduce((sum, block) => sum + block[0].length, 0);
  return (blocks[0] ?? []).map((_, channel) => {
    const joined = new Float32Array(length);
    let offset = 0;
    for (const block of blocks) {
      joined.set(block[channel], offset);
      offset += block[channel].length;
    }
    return joined;
  });
}

/** Encode channels as a WAV file with 16-bit samples. */
export function encodeWav(channels, sampleRate) {
  const frames = channels[0].length;
  const view = new DataView(new ArrayBuffer(HEADER_BYTES + 2 * frames * channels.length));
  const text = (offset, letters) =>
    [...letters].forEach((letter, i) => view.setUint8(offset + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, view.byteLength - 8, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, channels.length, true);
  view.setUint32(24, sampleRate, true);
  view.setUint32(28, 2 * sampleRate * channels.length, true);
  view.setUint16(32, 2 * channels.length, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, view.byteLength - HEADER_BYTES, true);
  for (let frame = 0, offset = HEADER_BYTES; frame < frames; frame++) {
    for (const channel of channels) {
      const value = Math.round(channel[frame] * 32768);
      view.setInt16(offset, Math.max(-32768, Math.min(32767, value)), true);
      offset += 2;
    }
  }
  return new Blob([view.buffer], {type: "audio/wav"});
}

/** Return the part of an AudioBuffer between two positions in seconds, as channels. */
export function cut(buffer, start, end) {
  const from = Math.round(start * buffer.sampleRate);
  const to = Math.min(buffer.length, Math.round(end * buffer.sampleRate));
  return Array.from({length: buffer.numberOfChannels}, (_, i) => buffer.getChannelData(i).slice(from, to));
}
