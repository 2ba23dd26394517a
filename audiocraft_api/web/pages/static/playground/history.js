const STORE = "clips";
const AUDIO = ["audio", "melody", "source"]; // the fields of a clip with audio that no server keeps

/**
 * The clips that this browser has made, in IndexedDB: recipes, links, peaks, and audio that no server keeps. Without
 * IndexedDB, in memory. If it becomes too much, the oldest audio goes first; then the oldest clips without a star. For
 * each clip that is changed by that it dispatches `change`, with the `clip`, or null, and its `id`.
 */
export class History extends EventTarget {
  #database;
  #memory = new Map();

  constructor(name = "audiocraft-playground", limits = {}) {
    super();
    this.limits = {clips: 1000, files: 100, bytes: 200e6, ...limits};
    this.#database = open(name).catch(() => null);
  }

  /** Return all clips, newest first. */
  async all() {
    const database = await this.#database;
    const clips = database
      ? await done(database.transaction(STORE).objectStore(STORE).getAll())
      : [...this.#memory.values()];
    return clips.sort((a, b) => b.created - a.created);
  }

  /** Keep a clip. It survives a reload once the returned promise is fulfilled. Throws an Error that says why not. */
  async put(clip) {
    try {
      await this.#put(clip);
    } catch (error) {
      if (error?.name !== "QuotaExceededError") throw new Error("The browser did not keep the clip in its history.");
      await this.#putInstead(clip);
    }
    const hasAudio = AUDIO.some((name) => clip[name]);
    if (hasAudio || (await this.#count()) > this.limits.clips) await this.#makeRoom(this.limits, clip.id);
  }

  /** Keep a clip in place of all audio of others. */
  async #putInstead(clip) {
    try {
      await this.#makeRoom({...this.limits, files: 0, bytes: 0}, clip.id);
      await this.#put(clip);
    } catch {
      throw new Error("The browser has no room for the clip in its history. Download it, or delete other clips.");
    }
  }

  #put(clip) {
    return this.#write(
      (store) => store.put(clip),
      () => this.#memory.set(clip.id, clip),
    );
  }

  /** Delete what is over the limits, but nothing of the clip `spared`. */
  async #makeRoom(limits, spared) {
    const clips = await this.all();
    let [files, bytes] = [0, 0];
    for (const clip of clips) {
      for (const name of AUDIO.filter((one) => clip[one])) {
        files++;
        bytes += sizeOf(clip[name]);
        if ((files <= limits.files && bytes <= limits.bytes) || clip.id === spared) continue;
        delete clip[name];
        if (name === "audio") clip.gone = true; // it can be made again from its recipe
        await this.#put(clip);
        this.#changed(clip.id, clip);
      }
    }
    const oldest = clips.filter(({id, starred}) => !starred && id !== spared).reverse();
    for (const {id} of oldest.slice(0, Math.max(0, clips.length - limits.clips))) {
      await this.delete(id);
      this.#changed(id, null);
    }
  }

  #changed(id, clip) {
    this.dispatchEvent(Object.assign(new Event("change"), {id, clip}));
  }

  delete(id) {
    return this.#write(
      (store) => store.delete(id),
      () => this.#memory.delete(id),
    );
  }

  async #count() {
    const database = await this.#database;
    return database ? done(database.transaction(STORE).objectStore(STORE).count()) : this.#memory.size;
  }

  async #write(inDatabase, inMemory) {
    const database = await this.#database;
    if (!database) return inMemory();
    const transaction = database.transaction(STORE, "readwrite");
    inDatabase(transaction.objectStore(STORE));
    return new Promise((resolve, reject) => {
      transaction.oncomplete = () => resolve();
      transaction.onabort = () => reject(transaction.error);
    });
  }
}

/** Return the bytes of a file: a Blob, or an object that has one. */
const sizeOf = (file) => (file.blob ?? file).size;

/** Return clips as a JSON text. Uploaded audio is left out. */
export function exportClips(clips) {
  const plain = clips.map(({melody, source, ...clip}) => (melody ? {...clip, melodyName: melody.name} : clip));
  return JSON.stringify({audiocraft_playground: 1, clips: plain}, null, 1);
}

/** Return the clips of an exported JSON text. Throws an Error that says what is wrong. */
export function importClips(text) {
  let parsed;
  try {
    parsed = JSON.parse(text);
  } catch {
    throw new Error("This file is not JSON. Choose a file that this page has exported.");
  }
  if (parsed?.audiocraft_playground !== 1 || !Array.isArray(parsed.clips)) {
    throw new Error("This file is not an export of this page.");
  }
  return parsed.clips.filter(isClip).map(({id, created, fields, seed, duration, sampleRate, ...rest}) => ({
    id,
    created,
    fields,
    seed,
    duration,
    sampleRate,
    format: String(rest.format ?? "wav"),
    audioUrl: /^\/(?!\/)/.test(rest.audioUrl ?? "") ? rest.audioUrl : null,
    peaks: Array.isArray(rest.peaks) ? rest.peaks.slice(0, 1000).map(Number) : [],
    loudness: typeof rest.loudness === "number" ? rest.loudness : null,
    starred: rest.starred === true,
    ...(rest.melodyName ? {melodyName: String(rest.melodyName)} : {}),
    ...(typeof rest.continues?.name === "string" ? {continues: originOf(rest.continues)} : {}),
  }));
}

const originOf = ({id, name, end, url}) =>
  typeof id === "string" && Number.isFinite(end)
    ? {id, name, end, url: typeof url === "string" ? url : null}
    : {id: null, name, end: null};

function isClip(clip) {
  const numbers = [clip?.created, clip?.seed, clip?.duration, clip?.sampleRate];
  return typeof clip?.id === "string" && typeof clip.fields?.prompt === "string" && numbers.every(Number.isFinite);
}

/** Return whether every word of a search occurs in a clip's prompt, model or seed. */
export function matches(clip, search) {
  const text = `${clip.fields.prompt} ${clip.fields.model_size} ${clip.seed}`.toLowerCase();
  return search
    .toLowerCase()
    .split(/\s+/)
    .every((word) => text.includes(word));
}

function open(name) {
  const request = indexedDB.open(name, 1);
  request.onupgradeneeded = () => request.result.createObjectStore(STORE, {keyPath: "id"});
  return done(request);
}

function done(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
