import {saveFile} from "./dom.js";
import {kindOf} from "./errors.js";
import {extensionOf, filenameOf} from "./format.js";
import {describeAudio} from "./job.js";
import {linkOf} from "./share.js";
import {formWith, runTask} from "./task.js";

/** What the buttons of a clip do. */
export class ClipActions {
  /** `page` offers: api, player, composer, history, library, announcer, toast(text), start(request, options). */
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
      describeAudio(
        clip,
        Array.from({length: buffer.numberOfChannels}, (_, i) => buffer.getChannelData(i)),
        buffer.sampleRate,
      );
      this.#save(clip);
    }
    return buffer;
  }

  async download(clip, format) {
    const name = filenameOf(clip.fields.prompt, clip.seed, extensionOf(format));
    try {
      const blob = format === clip.format ? await this.#blobOf(clip) : await this.#inFormat(clip, format);
      saveFile(blob, name);
    } catch (error) {
      this.#onMissing(clip, error);
    }
  }

  again(clip) {
    this.page.composer.fill(clip.fields);
    if (clip.melody) this.page.composer.melody.set(clip.melody.blob, clip.melody.name);
    this.page.composer.prompt.focus();
    this.page.composer.form.scrollIntoView({block: "nearest"});
  }

  vary(clip, count) {
    for (let i = 0; i < count; i++) {
      const {seed, ...fields} = clip.fields;
      this.page.start({fields, melody: clip.melody ?? null}, {listen: i === 0});
    }
  }

  /** Make the audio of a clip again from its recipe. */
  remake(clip) {
    if (clip.melodyName && !clip.melody)
      return this.page.toast(`Choose the melody ${clip.melodyName} again, then generate.`);
    const job = this.page.start({fields: clip.fields, melody: clip.melody ?? null});
    job.addEventListener("done", () => this.remove(clip, {quiet: true}));
    return job;
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
    return this.copy(linkOf(clip.fields), clip.melodyName ? "The link, without the melody," : "The link");
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
    this.page.toast("The server makes the clip in this format, with the same seed.");
    const fields = {...clip.fields, output_format: format};
    const request = clip.melody ? formWith(fields, clip.melody) : fields;
    const path = clip.melody ? "generate-with-melody-async" : "generate-async";
    const {audio_url} = await runTask(this.page.api, path, request, {});
    return (await this.page.api.fetch(audio_url)).blob();
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
    await this.page.history.put(clip);
  }

  #save(clip) {
    this.page.library.cardOf(clip).update();
    this.page.library.show();
    return this.page.history.put(clip);
  }
}
