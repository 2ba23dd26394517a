/**
 * Generates one clip, by whichever route the server offers for it:
 *
 * - text: a WebSocket; where none can be opened, a chunked response of `/generate-stream`, which also says why;
 * - text on a server whose models are on other machines, and all with a melody, notes or audio to continue: a task.
 *
 * `on` receives `accepted({seed})`, `waiting({position})`, `progress({current, total, eta})`,
 * `audio({block, channels, sampleRate})`. The result has the fields of the server's last message; `audio_url` is
 * missing if the audio was not stored.
 */
import {sentFields} from "./fields.js";
import {streamOverHttp} from "./stream-http.js";
import {streamOverSocket, SocketRefused} from "./stream-socket.js";
import {runRequest} from "./task.js";

export async function generate(api, {fields: own, melody, source}, on, signal) {
  const request = {fields: sentFields(own), melody, source};
  if (source || melody || own.notes) return runRequest(api, request, on, signal);
  try {
    return await stream(api, request.fields, on, signal);
  } catch (error) {
    if (error.code !== "not_streamable") throw error;
    return runRequest(api, request, on, signal);
  }
}

async function stream(api, fields, on, signal) {
  try {
    return await streamOverSocket(api, fields, on, signal);
  } catch (error) {
    if (!(error instanceof SocketRefused)) throw error;
    return streamOverHttp(api, fields, on, signal); // throws the server's reason, if it has one
  }
}
