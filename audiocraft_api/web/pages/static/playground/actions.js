import {saveFile} from "./dom.js";
import {kindOf} from "./errors.js";
import {extensionOf, filenameOf} from "./format.js";
import {describeAudio} from "./job.js";
import {continuingFields, sentFields, unseeded} from "./fields.js";
import {linkOf} from "./share.js";
import {runRequest} from "./task.js";

/** What the buttons of a clip do. */
export class ClipActions {
  /**
   * `page` offers: api, player, composer, history, library, announcer, keep(clip), toast(text),
   * start(request, options).
   */
  constructor(page) {
    this.page = page;
  }

  async play(clip, options) {
    try {
      await this.page.player.play(clip, options);
    } catch (error) {
      this.#onMissing(clip, error);
    }
  }

  /** Return the AudioBuffer of a clip: what `Player` calls to load it. */
  async load(clip, context) {
    const buffer = await context.decodeAudioData(await (await this.#blobOf(clip)).arrayBuffer());
    if (!clip.peaks.length) {
      const channels = Array.from({length: buffer.numberOfChannels}, (_, i) => buffer.getChannelData(i));
      describeAudio(clip, channels, buffer.sampleRate);
      this.#save(clip);
    }
    return buffer;
  }

  /** Draw a clip that was not streamed. If that fails, it is drawn when it is played. */
  describe(clip) {
    return this.load(clip, new OfflineAudioContext(1, 1, clip.sampleRate)).catch(() => {});
  }

  async download(clip, format) {
    const name = filenameOf(clip.fields.prompt, clip.seed, extensionOf(format));
    try {
      const blob = format === clip.format ? await this.#blobOf(clip) : await this.#inFormat(clip, format);
      if (blob) saveFile(blob, name);
    } catch (error) {
      this.#onMissing(clip, error);
    }
  }

  again(clip) {
    if (clip.fields.performance) return this.page.showLive(clip);
    this.page.showClipForm();
    this.page.composer.fill(clip.fields);
    if (clip.melody) this.page.composer.melody.set(clip.melody.blob, clip.melody.name);
    this.page.composer.prompt.focus();
    return this.page.composer.form.scrollIntoView({block: "nearest"});
  }

  async vary(clip, count) {
    const request = await this.#requestOf(clip);
    if (!request) return;
    // Streams of one clip each, not one task with `n`: its clips could only be heard when all are finished.
    for (let i = 0; i < count; i++) {
      this.page.start({...request, fields: unseeded(request.fields)}, {listen: i === 0});
    }
  }

  /** Make new audio that begins with the part of a clip before `end`, in seconds. */
  async continueFrom(clip, end) {
    const source = await this.#sourceOf(clip, end);
    if (!source) return;
    this.page.start({fields: continuingFields(clip.fields), source});
  }

  /** Make the audio of a clip again from its recipe. */
  async remake(clip) {
    const request = await this.#requestOf(clip);
    if (!request) return;
    const job = this.page.start(request);
    job.addEventListener("done", () => this.remove(clip, {quiet: true}));
  }

  star(clip) {
    clip.starred = !clip.starred;
    this.#save(clip);
  }

  async remove(clip, {quiet = false} = {}) {
    const {player, library, history, toast} = this.page;
    player.compared = player.compared.filter(({id}) => id !== clip.id);
    player.forget(clip);
    library.removeClip(clip);
    await history.delete(clip.id);
    if (!quiet) toast("The clip was deleted.", {label: "Undo", action: () => this.#restore(clip)});
  }

  compare(clip) {
    const {player, announcer} = this.page;
    const isIn = player.compared.some(({id}) => id === clip.id);
    const compared = isIn ? player.compared.filter(({id}) => id !== clip.id) : [...player.compared.slice(-1), clip];
    player.compared = compared;
    if (compared.length === 2) this.play(compared[0], {offset: 0});
    else player.dispatchEvent(new Event("change"));
    announcer.say(compared.length === 2 ? "Two clips run in parallel. A and B switch." : "Choose a second clip.");
  }

  async useAsMelody(clip) {
    try {
      const blob = await this.#blobOf(clip);
      await this.page.composer.melody.set(blob, filenameOf(clip.fields.prompt, clip.seed, extensionOf(clip.format)));
      this.page.composer.form.scrollIntoView({block: "nearest"});
    } catch (error) {
      this.#onMissing(clip, error);
    }
  }

  share(clip) {
    const isPart = clip.melodyName || clip.continues;
    return this.copy(linkOf(clip.fields), isPart ? "The link, without the audio," : "The link");
  }

  /** Save the performance of a clip, which can be edited and sent again. */
  saveRecipe({fields: {prompt, performance}}) {
    const text = JSON.stringify(performance, null, 1);
    saveFile(new Blob([text], {type: "application/json"}), filenameOf(prompt, performance.seed, "json"));
  }

  showRequest(clip) {
    this.page.requestDialog.open(clip, this.page.api.base, this.page.keyBox.key !== null);
  }

  async copy(text, what) {
    try {
      await navigator.clipboard.writeText(text);
      this.page.toast(`${what} was copied.`);
    } catch {
      prompt(`${what}:`, text); // without HTTPS, pages have no clipboard
    }
  }

  async #blobOf(clip) {
    if (clip.audio) return clip.audio;
    return (await this.page.api.fetch(clip.audioUrl)).blob();
  }

  async #inFormat(clip, format) {
    const request = await this.#requestOf(clip);
    if (!request) return null;
    this.page.toast("The server makes the clip in this format, with the same seed.");
    const fields = {...request.fields, output_format: format};
    const {audio_url} = await runRequest(this.page.api, {...request, fields: sentFields(fields)}, {});
    return (await this.page.api.fetch(audio_url)).blob();
  }

  /** Return the request that made a clip, with the audio it was made from; null, and say why, if that is gone. */
  async #requestOf({fields, melody = null, source = null, melodyName, continues}) {
    const missing = melodyName && !melody ? melodyName : continues && !continues.id && !source ? continues.name : null;
    if (missing) {
      this.page.toast(`Choose the file ${missing} again, then generate.`);
      return null;
    }
    if (source) return {fields, melody: null, source};
    if (!continues) return {fields, melody, source: null};
    const origin = this.page.library.clips.find(({id}) => id === continues.id);
    if (!origin) this.page.toast("The clip that this one continues is no longer in the history.");
    const part = origin ? await this.#sourceOf(origin, continues.end) : null;
    return part && {fields, melody: null, source: part};
  }

  async #sourceOf(clip, end) {
    try {
      const name = filenameOf(clip.fields.prompt, clip.seed, extensionOf(clip.format));
      return {id: clip.id, name, end, url: clip.audioUrl, blob: await this.#blobOf(clip)};
    } catch (error) {
      this.#onMissing(clip, error);
      return null;
    }
  }

  #onMissing(clip, error) {
    if (error.status === 404 || error.status === 410) {
      clip.gone = true;
      this.#save(clip);
    } else if (kindOf(error) === "key") {
      this.page.keyBox.open(error.message);
    } else {
      this.page.toast(error.message || "The browser cannot play this file.");
    }
  }

  async #restore(clip) {
    this.page.library.addClips([clip]);
    await this.page.keep(clip);
  }

  #save(clip) {
    this.page.library.cardOf(clip).update();
    this.page.library.show();
    return this.page.keep(clip);
  }
}
