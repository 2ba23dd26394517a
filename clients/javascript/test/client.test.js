// Runs against a real server: AUDIOCRAFT_URL, which requires AUDIOCRAFT_KEY. Its generations pause while the file
// AUDIOCRAFT_HOLD exists, if their prompt is `hold after 0`, and fail if it is `fail after 0`.

import assert from "node:assert/strict";
import {once} from "node:events";
import {rm, writeFile} from "node:fs/promises";
import {createServer} from "node:http";
import {after, before, describe, it} from "node:test";

import * as audiocraft from "audiocraft-api-client";

const {AUDIOCRAFT_URL: baseUrl, AUDIOCRAFT_KEY: apiKey, AUDIOCRAFT_HOLD: hold} = process.env;
const {AudioCraft} = audiocraft;
const client = new AudioCraft({baseUrl, apiKey});
const SECOND = {duration: 1};
const FAST = {pollInterval: 20};

/** A mono WAV file of one second at 16 kHz. */
function melody() {
  const samples = Buffer.alloc(32_000);
  for (let n = 0; n < 16_000; n++) samples.writeInt16LE(Math.round(9000 * Math.sin(n / 6)), 2 * n);
  const words = (...values) => Uint32Array.from(values); // little-endian on every machine that runs Node
  const format = words(16, 0x10001, 16_000, 32_000, 0x100002);
  return new Blob(["RIFF", words(36 + samples.length), "WAVEfmt ", format, "data", words(samples.length), samples]);
}

describe("generateAudio", () => {
  it("sends the options under the names of the API and returns the result", async () => {
    const sampling = {temperature: 0.5, topK: 7, topP: 0.5, cfgCoef: 2, seed: 3};
    const options = {modelSize: "medium", duration: 1, format: "ogg", ...sampling};
    const result = await client.generateAudio("solo cello", options);
    const {model, duration, temperature, top_k: topK, top_p: topP, cfg_coef: cfgCoef, seed} = result.recipe;
    assert.equal(result.success, true);
    const used = {modelSize: model, duration, format: result.format, temperature, topK, topP, cfgCoef, seed};
    assert.deepEqual(used, options);
    const audio = await client.download(result);
    assert.equal((await client.download(result.audio_url)).size, audio.size);
    assert.equal(client.audioUrl(result.audio_url), client.audioUrl(result));
    assert.equal(audio.type, "audio/ogg");
    assert.ok(audio.size > 1000);
    assert.equal(client.audioUrl(result), baseUrl + result.audio_url);
  });

  it("takes segments in place of the prompt", async () => {
    const segments = [{prompt: "piano", duration: 0.5, negativePrompt: "drums"}, {prompt: "choir", duration: 0.5}];
    const {recipe} = await client.generateAudio(null, {segments});
    assert.deepEqual(recipe.segments, [
      {prompt: "piano", duration: 0.5, negative_prompt: "drums"},
      {prompt: "choir", duration: 0.5},
    ]);
    await assert.rejects(client.generateAudio("solo cello", {segments}), /prompt cannot be combined with segments/);
  });

  it("works as a function without a client", async () => {
    const result = await audiocraft.generateAudio("solo cello", {...SECOND, returnType: "base64", baseUrl, apiKey});
    assert.equal(Buffer.from(result.audio, "base64").subarray(0, 4).toString(), "RIFF");
  });

  it("uploads a melody, as a Blob or as bytes", async () => {
    const blob = melody();
    for (const file of [blob, new Uint8Array(await blob.arrayBuffer())]) {
      const result = await client.generateAudio("string quartet", {...SECOND, melody: file});
      assert.match(result.recipe.melody, /^[0-9a-f]{64}$/);
    }
  });

  it("follows notes, and refuses them for a stream", async () => {
    const options = {...SECOND, notes: "C4:1 E4:1", bpm: 90};
    const results = [
      await client.generateAudio("string quartet", options),
      (await client.generateAudioAsync("string quartet", {...options, ...FAST})).result,
      await client.generateAudio("string quartet", {...options, audio: melody(), modelSize: "medium"}),
    ];
    for (const {recipe} of results) assert.deepEqual([recipe.notes, recipe.bpm], ["C4:1 E4:1", 90]);
    await assert.rejects(client.stream("string quartet", options), TypeError);
  });

  it("continues a recording, also with a melody", async () => {
    const options = {...SECOND, audio: melody(), start: 0.25, includeInput: false};
    const {duration, recipe} = await client.generateAudio("solo cello", options);
    assert.deepEqual([duration, recipe.start, recipe.end, recipe.include_input], [1, 0.26, 1, false]);
    const uploads = {audio: melody(), melody: melody(), modelSize: "medium"};
    const task = await client.generateAudioAsync("solo cello", {...SECOND, ...FAST, ...uploads});
    assert.equal(task.result.duration, 2);
    assert.match(task.result.recipe.melody, /^[0-9a-f]{64}$/);
    await assert.rejects(client.stream("solo cello", {...SECOND, audio: melody()}), TypeError);
  });

  it("continues audio on the server", async () => {
    const first = await client.generateAudio("solo cello", SECOND);
    const continueFrom = {audioUrl: first.audio_url, start: 0.5};
    const second = await client.generateAudio("solo cello", {...SECOND, continueFrom});
    assert.equal(second.duration, 1.5);
    const stream = await client.stream("solo cello", {...SECOND, continueFrom: {audioUrl: second.audio_url}});
    assert.equal(stream.duration, 2.5);
    await stream.blob();
  });

  it("makes variations", async () => {
    const {variations} = await client.generateAudio("solo cello", {...SECOND, n: 2, seed: 3});
    assert.deepEqual(variations.map(({seed}) => seed), [3, 4]);
    for (const variation of variations) assert.ok((await client.download(variation)).size > 44);
  });

  it("stops when its signal aborts", async () => {
    await writeFile(hold, "");
    const generation = client.generateAudio("hold after 0", {...SECOND, signal: AbortSignal.timeout(50)});
    await assert.rejects(generation, {name: "TimeoutError"});
    await rm(hold);
  });
});

describe("generateAudioAsync", () => {
  it("reports progress and resolves with the completed task", async () => {
    const states = [];
    const onProgress = ({status}) => states.push(status);
    const task = await client.generateAudioAsync("solo cello", {...SECOND, ...FAST, onProgress});
    assert.equal(states.at(-1), "completed");
    assert.equal(task.audio_url, `/audio/${task.result.filename}`);
    assert.ok((await client.download(task)).size > 44);
  });

  it("works as a function, and with a melody", async () => {
    const options = {...SECOND, ...FAST, melody: melody(), baseUrl, apiKey};
    const task = await audiocraft.generateAudioAsync("solo cello", options);
    assert.equal(task.status, "completed");
  });

  it("throws the error of a failed task", async () => {
    const task = client.generateAudioAsync("fail after 0", {...SECOND, ...FAST});
    await assert.rejects(task, {name: "GenerationFailedError", code: "generation_failed"});
  });

  it("throws when its submission is refused, and does not poll", async () => {
    const task = client.generateAudioAsync("solo cello", {modelSize: "unknown"});
    await assert.rejects(task, audiocraft.InvalidRequestError);
  });

  it("cancels the task when its signal aborts", async () => {
    await writeFile(hold, "");
    const controller = new AbortController();
    let id;
    const onProgress = (task) => {
      id = task.task_id;
      controller.abort();
    };
    const task = client.generateAudioAsync("hold after 0", {...SECOND, ...FAST, onProgress, signal: controller.signal});
    await assert.rejects(task, {name: "AbortError"});
    await assert.rejects(client.tasks.wait(id, FAST), audiocraft.CanceledError);
    await rm(hold);
  });
});

describe("stream", () => {
  it("yields the bytes of the whole audio", async () => {
    const stream = await client.stream("solo cello", {...SECOND, seed: 5});
    let size = 0;
    for await (const bytes of stream) size += bytes.length;
    assert.equal(size, 44 + 2 * 2 * stream.sampleRate * stream.duration);
    assert.deepEqual([stream.seed, stream.duration, stream.mediaType], [5, 1, "audio/wav"]);
  });

  it("can be read whole", async () => {
    const stream = await client.stream("solo cello", {...SECOND, format: "mp3"});
    assert.ok((await stream.blob()).size > 1000);
  });

  it("throws when the generation fails after the first audio", async () => {
    const stream = await client.stream("fail after 3", SECOND);
    await assert.rejects(async () => {
      for await (const _ of stream);
    }, audiocraft.ConnectionError);
  });

  it("throws an ordinary error when the generation fails before", async () => {
    await assert.rejects(client.stream("fail after 0", SECOND), audiocraft.GenerationFailedError);
  });

  it("stops the generation when its reader leaves", async () => {
    await writeFile(hold, "");
    for await (const _ of await client.stream("hold after 3", {duration: 5})) break;
    while ((await client.health()).queue.running > 0);
    await rm(hold);
  });

  it("refuses a melody before any request", async () => {
    await assert.rejects(client.stream("solo cello", {melody: melody()}), TypeError);
  });
});

describe("tasks", () => {
  it("are listed, followed and canceled", async () => {
    await writeFile(hold, "");
    const {task_id: id} = await client.tasks.submit("hold after 0", SECOND);
    const page = await client.tasks.list({limit: 1});
    assert.equal(page.tasks[0].task_id, id);
    assert.equal((await client.tasks.list({limit: 1, cursor: page.next_cursor})).tasks.length, 1);
    const states = [];
    for await (const task of client.tasks.events(id)) {
      states.push(task.status);
      if (states.length === 1) await client.tasks.cancel(id);
    }
    assert.equal(states.at(-1), "canceled");
    await rm(hold);
  });

  it("are submitted once for one idempotency key", async () => {
    const options = {...SECOND, idempotencyKey: `key-${Date.now()}`};
    const first = await client.tasks.submit("solo cello", options);
    const second = await client.tasks.submit("solo cello", options);
    assert.equal(first.task_id, second.task_id);
    const changed = client.tasks.submit("another", options);
    await assert.rejects(changed, audiocraft.IdempotencyConflictError);
  });

  it("that do not exist are not found", async () => {
    await assert.rejects(client.tasks.get("a/b?c"), audiocraft.NotFoundError);
  });
});

describe("errors", () => {
  it("name the invalid fields", async () => {
    await assert.rejects(client.generateAudio("solo cello", {duration: 99, tempo: 1}), (error) => {
      assert.ok(error instanceof audiocraft.InvalidRequestError);
      assert.deepEqual([error.name, error.code, error.status], ["InvalidRequestError", "invalid_request", 400]);
      assert.deepEqual(Object.keys(error.errors).sort(), ["duration", "tempo"]);
      assert.ok(error.message && error.requestId);
      return true;
    });
  });

  it("tell a wrong key", async () => {
    await assert.rejects(new AudioCraft({baseUrl, apiKey: "wrong"}).models(), audiocraft.UnauthorizedError);
    await assert.rejects(new AudioCraft({baseUrl}).models(), {message: "Invalid or missing API key"});
  });

  it("tell a missing scope", async () => {
    await assert.rejects(client.loadModel("demo"), audiocraft.ForbiddenError);
    await assert.rejects(client.unloadModel("demo", {whenBusy: "refuse"}), audiocraft.ForbiddenError);
  });

  it("tell the category and the suggestion for a refused prompt", async () => {
    await assert.rejects(client.generateAudio("sad piano, kill yourself, 90 bpm", SECOND), (error) => {
      assert.ok(error instanceof audiocraft.PromptRefusedError);
      assert.ok(error.category);
      return true;
    });
  });
});

describe("retries", () => {
  const answers = [];
  const requests = [];
  let server;
  let flaky;

  before(async () => {
    server = createServer((request, response) => {
      requests.push({method: request.method, key: request.headers["idempotency-key"]});
      const [status, headers, body] = answers.shift();
      if (status === null) return request.socket.destroy();
      response.writeHead(status, {"Content-Type": "application/json", ...headers});
      request.resume().on("end", () => response.end(body));
    }).listen(0, "127.0.0.1");
    await once(server, "listening");
    flaky = new AudioCraft({baseUrl: `http://127.0.0.1:${server.address().port}/`});
  });
  after(() => server.close());

  const full = (retryAfter) => [503, {"Retry-After": retryAfter}, '{"error": "Full.", "code": "queue_full"}'];
  async function sent(action, ...given) {
    answers.splice(0, Infinity, ...given);
    requests.length = 0;
    const outcome = await action().catch((error) => error);
    return [outcome, requests];
  }

  it("repeat a GET after Retry-After, and after a lost connection", async () => {
    const [models, gets] = await sent(() => flaky.models(), full("0"), [null], [200, {}, '{"models": []}']);
    assert.deepEqual([models, gets.length], [[], 3]);
  });

  it("give up after the last attempt, or when Retry-After is too long", async () => {
    const [error, gets] = await sent(() => flaky.models(), full("0"), full("0"), full("0"));
    assert.deepEqual([error.code, error.retryAfter, gets.length], ["queue_full", 0, 3]);
    assert.equal((await sent(() => flaky.models(), full("86400")))[1].length, 1);
  });

  it("never repeat a POST without an idempotency key", async () => {
    for (const answer of [full("0"), [null]]) {
      const [error, posts] = await sent(() => flaky.generateAudio("solo cello"), answer);
      assert.ok(error instanceof audiocraft.AudioCraftError);
      assert.equal(posts.length, 1);
      assert.equal((await sent(() => flaky.stream("solo cello"), answer))[1].length, 1);
    }
  });

  it("repeat a submission with its idempotency key", async () => {
    const accepted = [202, {}, '{"task_id": "1"}'];
    const [task, posts] = await sent(() => flaky.tasks.submit("solo cello"), [null], full("0"), accepted);
    assert.equal(task.task_id, "1");
    assert.equal(new Set(posts.map(({key}) => key)).size, 1);
    assert.match(posts[0].key, /^[0-9a-f]{32}$/);
  });

  it("do not happen for errors that would come again", async () => {
    const [error, gets] = await sent(() => flaky.models(), [500, {}, "<html>A proxy's page</html>"]);
    assert.deepEqual([error.status, error.code, gets.length], [500, "internal_error", 1]);
  });
});

describe("live", () => {
  const STEP = 2 * 2 * 640; // bytes of a frame: two channels of 16-bit samples at 32 kHz

  /** Reads audio until there are this many frames of it. */
  async function read(blocks, frames) {
    let bytes = 0;
    while (bytes < frames * STEP) bytes += (await blocks.next()).value.length;
    return bytes / STEP;
  }

  it("changes the music while it plays, and keeps the performance", async () => {
    const kinds = [];
    const onMessage = ({type}) => kinds.push(type);
    const session = await client.live("solo cello", {modelSize: "demo-stereo", seed: 3, lead: 1, topK: 50, onMessage});
    const {seed, sampleRate, channels, frameRate, lead} = session;
    assert.deepEqual([seed, sampleRate, channels, frameRate, lead], [3, 32_000, 2, 50, 1]);
    const blocks = session[Symbol.asyncIterator]();
    await read(blocks, 10);
    const prompts = ["solo cello", {text: "rain", weight: -0.5}];
    const frame = await session.steer({prompts, transition: 0.2, cfgCoef: 2, bpm: 90});
    const lastFrame = await session.steer({bpm: null});
    await assert.rejects(session.steer({temperature: 9}), audiocraft.InvalidRequestError);
    await assert.rejects(session.steer({prompts: "kill yourself"}), ({suggestion}) => Boolean(suggestion));
    await session.pause();
    await session.play();
    session.reportPlayback(0.1);
    await read(blocks, lastFrame + 1); // a performance has only the changes that were reached
    await session.stop();
    for await (const block of {[Symbol.asyncIterator]: () => blocks}) assert.ok(block.length);
    assert.equal(session.ended.reason, "stopped");
    assert.deepEqual(kinds.slice(0, 2), ["started", "applied"]);
    const performance = await client.performance(session.ended.performance);
    assert.equal(performance.frames, session.ended.frames);
    const [first, ...rest] = performance.changes;
    assert.deepEqual([first.prompts, first.top_k], [[{text: "solo cello", weight: 1}], 50]);
    const change = rest.find((one) => one.frame === frame);
    assert.deepEqual(
      [change.cfg_coef, change.prompts],
      [2, [{text: "solo cello. bpm: 90", weight: 1}, {text: "rain", weight: -0.5}]],
    );
    assert.equal(rest.at(-1).prompts[0].text, "solo cello");
    const {recipe} = await client.generateAudio(null, {performance});
    assert.equal(recipe.performance.frames, performance.frames);
  });

  it("goes back to an earlier second", async () => {
    const session = await client.live("solo cello", {modelSize: "demo-stereo", lead: 1});
    const blocks = session[Symbol.asyncIterator]();
    await read(blocks, 30);
    assert.equal(await session.seekBack(0.2, "piano"), 10);
    await session.stop();
    let bytes = 0;
    for (let item; !(item = await blocks.next()).done;) bytes += item.value.length;
    assert.equal(bytes / STEP, session.ended.frames - 10);
  });

  it("throws why it cannot begin, and ends with its signal", async () => {
    await assert.rejects(client.live("solo cello", {modelSize: "melody"}), audiocraft.InvalidRequestError);
    const wrong = new AudioCraft({baseUrl, apiKey: "wrong"});
    await assert.rejects(wrong.live("solo cello"), audiocraft.ConnectionError);
    const without = new AudioCraft({baseUrl, apiKey, WebSocket: null});
    await assert.rejects(async () => without.live("solo cello"), TypeError);
    const controller = new AbortController();
    const session = await client.live("solo cello", {signal: controller.signal});
    controller.abort();
    await assert.rejects(session[Symbol.asyncIterator]().next(), {name: "AbortError"});
    await assert.rejects(session.steer({topK: 3}), {name: "AbortError"});
  });
});
