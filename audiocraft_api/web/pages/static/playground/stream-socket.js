import {ApiError, connectionLost} from "./api.js";
import {WavReader} from "./pcm.js";
import {Eta} from "./eta.js";

/** The socket was never open. Browsers do not say why. */
export class SocketRefused extends Error {}

/** Generate over `/ws/generate`: 16-bit samples while it runs, and a file in the requested format at the end. */
export function streamOverSocket(api, fields, on, signal) {
  const {output_format: file_format, ...rest} = fields;
  const socket = api.openSocket("ws/generate");
  socket.binaryType = "arraybuffer";
  const reader = new WavReader();
  const eta = new Eta();
  let opened = false;

  return new Promise((resolve, reject) => {
    const fail = (error) => {
      reject(error);
      socket.close();
    };
    const handlers = {
      accepted: (message) => on.accepted?.(message),
      queued: ({queue_position: position, eta_seconds}) => on.waiting?.({position, eta: eta_seconds}),
      progress: ({current, total}) => on.progress?.({current, total, eta: eta.of(current, total)}),
      done: (message) => resolve(message),
      error: (message) => reject(new ApiError(message)),
    };
    signal?.addEventListener("abort", () => fail(signal.reason), {once: true});
    if (signal?.aborted) fail(signal.reason);
    socket.onopen = () => {
      opened = true;
      socket.send(JSON.stringify({...rest, output_format: "wav", file_format}));
    };
    socket.onmessage = ({data}) => {
      if (typeof data === "string") {
        const message = JSON.parse(data);
        return handlers[message.type]?.(message);
      }
      const block = reader.read(new Uint8Array(data));
      if (block) on.audio?.({block, channels: reader.channels, sampleRate: reader.sampleRate});
    };
    socket.onclose = () => reject(opened ? connectionLost(" while the clip was made") : new SocketRefused());
  });
}
