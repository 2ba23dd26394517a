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

/** The audio of the next request: a file, a recording or a clip, its part, and whether to follow or to continue it. */
export class MelodyPicker extends EventTarget {
  #decode;
  #source = null; // {blob, name, buffer}
  #region = null;
  #recording = null;
  #use = "follow"; // or "continue"

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

  /** The melody to follow as it is sent: {blob, name}, or null. */
  get value() {
    return this.#use === "follow" ? this.#audio : null;
  }

  /** The audio to continue as it is sent, to its end; or null. */
  get source() {
    const audio = this.#use === "continue" ? this.#audio : null;
    return audio && {...audio, id: null, end: null};
  }

  get #audio() {
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
    const note = element("small");
    const describe = () => {
      const verb = this.#use === "follow" ? "follows" : "continues";
      const [start, end] = this.#region ?? [0, 0];
      note.textContent = buffer ? `The music ${verb} ${inWords(end - start)} of it.` : `The music ${verb} it.`;
    };
    const use = this.#useSelect(describe);
    this.place.replaceChildren(element("div", {className: "melody-head"}, title, remove), use, note);
    describe();
    if (!buffer) return;
    const waveform = new Waveform({
      label: "Audio to start from",
      duration: buffer.duration,
      onseek: () => {},
      onregion: ([start, end]) => {
        this.#region = end - start > MAX_SECONDS ? [start, start + MAX_SECONDS] : [start, end];
        if (end - start > MAX_SECONDS) waveform.setRegion(this.#region);
        describe();
      },
    });
    const channels = Array.from({length: buffer.numberOfChannels}, (_, i) => buffer.getChannelData(i));
    waveform.setPeaks(peaksOf(channels));
    waveform.setRegion(this.#region);
    waveform.setDisabled(true);
    use.before(waveform.element);
  }

  #useSelect(describe) {
    const options = [
      ["follow", "Follow it as a melody"],
      ["continue", "Continue it"],
    ].map(([value, textContent]) => element("option", {value, textContent}));
    const select = element("select", {"aria-label": "What to do with the audio"}, ...options);
    select.value = this.#use;
    select.addEventListener("change", () => {
      this.#use = select.value;
      describe();
      this.dispatchEvent(new Event("change"));
    });
    return select;
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
