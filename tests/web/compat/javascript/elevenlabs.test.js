// ElevenLabs' unmodified JavaScript client makes music with the server.
import assert from "node:assert/strict";
import {test} from "node:test";
import {ElevenLabsClient, ElevenLabsError} from "@elevenlabs/elevenlabs-js";
import {bytesOf, errorOf, held, key, MAGIC, magicOf, spentKey, url} from "./support.js";

const connect = (apiKey) => new ElevenLabsClient({baseUrl: url, apiKey, maxRetries: 0});
const client = connect(key);
const compose = async (fields = {}, from = client) =>
  bytesOf(await from.music.compose({prompt: "cello", musicLengthMs: 3000, ...fields}));

for (const [outputFormat, magic] of [["mp3_44100_128", MAGIC.mp3], ["opus_48000_64", MAGIC.opus]]) {
  test(`music is composed as ${outputFormat}`, async () => {
    assert.ok(magicOf(await compose({outputFormat})).startsWith(magic));
  });
}

test("samples without a header have the rate of their format", async () => {
  assert.equal((await compose({outputFormat: "pcm_16000"})).length, 2 * 2 * 48_000);
  assert.equal((await compose({outputFormat: "ulaw_8000"})).length, 24_000);
});

test("music is streamed while it is generated", async () => {
  await held(async (release) => {
    const body = {prompt: "hold after 20", musicLengthMs: 3000, outputFormat: "pcm_44100"};
    const reader = (await client.music.stream(body)).getReader();
    let length = (await reader.read()).value.length;
    release();
    for (let read = await reader.read(); !read.done; read = await reader.read()) length += read.value.length;
    assert.equal(length, 2 * 2 * 3 * 44_100);
  });
});

test("a request can be aborted", async () => {
  await held(async () => {
    const abortSignal = AbortSignal.timeout(200);
    await errorOf(client.music.compose({prompt: "hold after 0", musicLengthMs: 3000}, {abortSignal}));
    assert.ok(abortSignal.aborted);
  });
});

test("a plan is made and composed, with details", async () => {
  const plan = await client.music.compositionPlan.create({prompt: "slow jazz, piano, no drums", musicLengthMs: 6000});
  assert.deepEqual(plan.positiveGlobalStyles, ["slow jazz", "piano"]);
  assert.deepEqual(plan.negativeGlobalStyles, ["drums"]);
  const song = await client.music.composeDetailed({compositionPlan: plan, outputFormat: "mp3_22050_32"});
  assert.equal(song.json.compositionPlan.sections[0].sectionName, "Main");
  assert.equal(song.filename, "music.mp3");
  assert.ok(magicOf(song.audio).startsWith(MAGIC.mp3));
});

test("an uploaded song is continued", async () => {
  const song = await compose({outputFormat: "mp3_44100_128"});
  const {songId} = await client.music.upload({file: new File([song], "song.mp3", {type: "audio/mpeg"})});
  const section = (name, fields = {}) => ({
    sectionName: name,
    positiveLocalStyles: ["piano"],
    negativeLocalStyles: [],
    durationMs: 3000,
    lines: [],
    ...fields,
  });
  const source = {sourceFrom: {songId, range: {startMs: 0, endMs: 1000}}};
  const sections = [section("Old", source), section("New")];
  const compositionPlan = {positiveGlobalStyles: ["jazz"], negativeGlobalStyles: [], sections};
  const audio = await bytesOf(await client.music.compose({compositionPlan, outputFormat: "pcm_8000"}));
  assert.equal(audio.length, 2 * 2 * 4 * 8000);
});

test("sound is generated from text", async () => {
  const sound = await client.textToSoundEffects.convert({text: "rain", durationSeconds: 1, promptInfluence: 0.5});
  assert.ok(magicOf(await bytesOf(sound)).startsWith(MAGIC.mp3));
});

test("a wrong key is refused", async () => {
  const error = await errorOf(compose({}, connect("wrong")));
  assert.ok(error instanceof ElevenLabsError);
  assert.deepEqual([error.statusCode, error.body.detail.status], [401, "invalid_api_key"]);
});

test("a limit is reported", async () => {
  const error = await errorOf(compose({}, connect(spentKey)));
  assert.deepEqual([error.statusCode, error.body.detail.status], [429, "rate_limited"]);
});

test("a refused prompt has a suggestion", async () => {
  const error = await errorOf(compose({prompt: "kill yourself"}));
  assert.deepEqual([error.statusCode, error.body.detail.status], [400, "bad_prompt"]);
  assert.ok(error.body.detail.data.prompt_suggestion);
});

test("a bad field is named", async () => {
  const error = await errorOf(compose({musicLengthMs: 400_000}));
  assert.equal(error.statusCode, 422);
  assert.deepEqual(error.body.detail[0].loc, ["body", "music_length_ms"]);
});

test("stems are refused", async () => {
  const error = await errorOf(client.music.separateStems({file: new Blob(["RIFF"])}));
  assert.equal(error.statusCode, 404);
  assert.match(error.body.detail.message, /does not separate stems/);
});
