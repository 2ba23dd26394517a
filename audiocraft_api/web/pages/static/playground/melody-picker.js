import {button, byId, element} from "./dom.js";
import {inWords} from "./format.js";
import {peaksOf} from "./peaks.js";
import {cut, encodeWav} from "./pcm.js";
import {record} from "./recorder.js";
import {Waveform} from "./waveform.js";

const SAMPLE_RATE = 32_000;
const MIN_SECONDS = 0.5;
const MAX_SECONDS = 60; // of the server
const REGION_SECONDS = 30; // no model follows more

/** The melody of the next request: a file, a recording or a clip, and the part of it to follow. */
export class MelodyPicker extends EventTarget {
  #decode;
  #source = null; // {blob, name, buffer}
  #region = null;
  #recording = null;

  /** `decode(bytes, sampleRate)` returns an AudioBuffer. It dispatches `change`. */
  constructor(decode) {
    super();
    this.#decode = decode;
    this.place = byId("melody");
    const input = byId("melody-file");
    byId("melody-upload").addEventListener("click", () => input.click());
    input.addEventListener("change", () => {
      if (input.files[0]) this.set(input.files[0], input.files[0].name);
      input.value = "";
    });
    const recordButton = byId("melody-record");
    recordButton.hidden = !navigator.mediaDevices?.getUserMedia || !window.MediaRecorder;
    recordButton.addEventListener("click", () => this.#toggleRecording(recordButton));
    this.#acceptDrops();
  }

  /** The melody as it is sent: {blob, name}, or null. */
  get value() {
    if (!this.#source) return null;
    const {blob, name, buffer} = this.#source;
    const isWhole = !buffer || (this.#region[0] <= 0 && this.#region[1] >= buffer.duration - 0.01);
    if (isWhole) return {blob, name};
    const [start, end] = this.#region;
    return {blob: encodeWav(cut(buffer, start, end), buffer.sampleRate), name: `${name.replace(/\.\w+$/, "")}.wav`};
  }

  async set(blob, name) {
    this.#source = {blob, name, buffer: null};
    this.#problem("");
    try {
      const buffer = await this.#decode(await blob.arrayBuffer(), SAMPLE_RATE);
      this.#source.buffer = buffer;
      this.#region = [0, Math.min(buffer.duration, REGION_SECONDS)];
      if (buffer.duration < MIN_SECONDS) return this.clear("The melody must be at least half a second long.");
    } catch {
      // The server reads more kinds of files than browsers do; without a picture, it gets the whole file.
    }
    this.#show();
    return this.dispatchEvent(new Event("change"));
  }

  clear(problem = "") {
    this.#source = null;
    this.place.replaceChildren();
    this.#problem(problem);
    this.dispatchEvent(new Event("change"));
  }

  #show() {
    const {name, buffer} = this.#source;
    const remove = button("Remove the melody", () => this.clear(), {icon: "close", iconOnly: true});
    const title = element("span", {className: "melody-name", textContent: name});
    const note = element("small", {textContent: "The music follows this melody."});
    this.place.replaceChildren(element("div", {className: "melody-head"}, title, remove), note);
    if (!buffer) return;
    const describe = ([start, end]) => `The music follows ${inWords(end - start)} of it.`;
    const waveform = new Waveform({
      label: "Melody",
      duration: buffer.duration,
      onseek: () => {},
      onregion: ([start, end]) => {
        this.#region = end - start > MAX_SECONDS ? [start, start + MAX_SECONDS] : [start, end];
        if (end - start > MAX_SECONDS) waveform.setRegion(this.#region);
        note.textContent = describe(this.#region);
      },
    });
    const channels = Array.from({length: buffer.numberOfChannels}, (_, i) => buffer.getChannelData(i));
    waveform.setPeaks(peaksOf(channels));
    waveform.setRegion(this.#region);
    waveform.setDisabled(true);
    note.textContent = describe(this.#region);
    note.before(waveform.element);
  }

  async #toggleRecording(recordButton) {
    if (this.#recording) return this.#recording.stop();
    try {
      this.#recording = await record(MAX_SECONDS);
    } catch (error) {
      const denied = error.name === "NotAllowedError";
      return this.#problem(denied ? "The microphone is blocked for this page." : "No microphone was found.");
    }
    recordButton.classList.add("recording");
    recordButton.querySelector("span").textContent = "Stop recording";
    const {blob, name} = await this.#recording.result;
    this.#recording = null;
    recordButton.classList.remove("recording");
    recordButton.querySelector("span").textContent = "Record";
    return this.set(blob, name);
  }

  #acceptDrops() {
    addEventListener("dragover", (event) => {
      if (![...event.dataTransfer.types].includes("Files")) return;
      event.preventDefault();
      document.body.classList.add("dropping");
    });
    addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) document.body.classList.remove("dropping");
    });
    addEventListener("drop", (event) => {
      document.body.classList.remove("dropping");
      const [file] = event.dataTransfer.files;
      if (!file) return;
      event.preventDefault();
      this.set(file, file.name);
    });
  }

  #problem(text) {
    byId("melody-problem").textContent = text;
  }
}
