import {AudioCraft} from "./client.js";

export {AudioCraft} from "./client.js";
export {LiveSession} from "./live.js";
export {AudioStream} from "./stream.js";
export * from "./errors.js";

/** Generates audio and waits for it. The options `baseUrl` and `apiKey` select the server. */
export function generateAudio(prompt, {baseUrl, apiKey, ...options} = {}) {
  return new AudioCraft({baseUrl, apiKey}).generateAudio(prompt, options);
}

/** Generates audio as a task and polls until it is completed. */
export function generateAudioAsync(prompt, {baseUrl, apiKey, ...options} = {}) {
  return new AudioCraft({baseUrl, apiKey}).generateAudioAsync(prompt, options);
}
