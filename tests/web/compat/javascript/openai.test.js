// OpenAI's unmodified JavaScript client makes music with the server.
import assert from "node:assert/strict";
import {test} from "node:test";
import OpenAI from "openai";
import {bytesOf, errorOf, held, key, MAGIC, magicOf, spentKey, url} from "./support.js";

const connect = (apiKey) => new OpenAI({baseURL: `${url}/v1`, apiKey, maxRetries: 0});
const client = connect(key);
const speak = (fields = {}, from = client) =>
  from.audio.speech.create({model: "demo", voice: "alloy", input: "cello", seconds: 1, ...fields});

for (const format of ["mp3", "opus", "flac", "wav"]) {
  test(`speech is music in ${format}`, async () => {
    const audio = await (await speak({response_format: format})).arrayBuffer();
    assert.ok(magicOf(audio).startsWith(MAGIC[format]));
  });
}

test("samples without a header are mono at 24 kHz", async () => {
  const audio = await (await speak({response_format: "pcm"})).arrayBuffer();
  assert.equal(audio.byteLength, 2 * 24_000);
});

test("audio is streamed while it is generated", async () => {
  await held(async (release) => {
    const response = await speak({input: "hold after 5", response_format: "wav", stream_format: "audio"});
    const reader = response.body.getReader();
    const first = await reader.read();
    assert.equal(magicOf(first.value), "RIFF");
    release();
    reader.releaseLock();
    assert.ok((await bytesOf(response.body)).length > 64_000);
  });
});

test("a request can be aborted", async () => {
  await held(async () => {
    const controller = new AbortController();
    setTimeout(() => controller.abort(), 200);
    const body = {model: "demo", voice: "alloy", input: "hold after 0", seconds: 1};
    const error = await errorOf(client.audio.speech.create(body, {signal: controller.signal}));
    assert.ok(error instanceof OpenAI.APIUserAbortError);
  });
});

test("the models are those of the server", async () => {
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  assert.ok(names.includes("demo"));
  assert.equal((await client.models.retrieve("musicgen-medium")).id, "medium");
});

test("a wrong key is an authentication error", async () => {
  const error = await errorOf(speak({}, connect("wrong")));
  assert.ok(error instanceof OpenAI.AuthenticationError);
  assert.equal(error.code, "invalid_api_key");
});

test("a limit is a rate limit error", async () => {
  const error = await errorOf(speak({}, connect(spentKey)));
  assert.ok(error instanceof OpenAI.RateLimitError);
  assert.ok(Number(error.headers.get("Retry-After")) > 0);
});

test("a refused prompt has a suggestion", async () => {
  const error = await errorOf(speak({input: "kill yourself"}));
  assert.equal(error.code, "content_policy_violation");
  assert.ok(error.error.suggestion);
});

test("a bad field is named", async () => {
  assert.equal((await errorOf(speak({seconds: 900}))).param, "seconds");
  assert.equal((await errorOf(speak({speed: 2}))).param, "speed");
  assert.equal((await errorOf(speak({model: "tts-1"}))).code, "model_not_found");
});
