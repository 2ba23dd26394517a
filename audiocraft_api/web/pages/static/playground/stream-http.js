import {connectionLost} from "./api.js";
import {Eta} from "./eta.js";
import {WavReader} from "./pcm.js";

/** Generate over `/generate-stream`, which needs no WebSocket and stores nothing. Throws ApiError. */
export async function streamOverHttp(api, fields, on, signal) {
  const request = {...fields, output_format: "wav"};
  const response = await api.postJson("generate-stream", request, {signal});
  const header = (name) => response.headers.get(`X-Audio-${name}`);
  const seed = Number(header("Seed"));
  const sampleRate = Number(header("Sample-Rate"));
  const duration = Number(header("Duration"));
  const total = duration * sampleRate;
  on.accepted?.({seed, model: header("Model")});
  const reader = new WavReader();
  const eta = new Eta();
  let current = 0;
  try {
    for (const body = response.body.getReader(); ;) {
      const {done, value} = await body.read();
      if (done) break;
      const block = reader.read(value);
      if (!block) continue;
      current += block[0].length;
      on.audio?.({block, channels: reader.channels, sampleRate});
      on.progress?.({current, total, eta: eta.of(current, total)});
    }
  } catch (error) {
    if (signal?.aborted) throw error;
    throw connectionLost(" while the clip was made");
  }
  return {seed, duration, model: header("Model"), revision: header("Revision"), sample_rate: sampleRate};
}
