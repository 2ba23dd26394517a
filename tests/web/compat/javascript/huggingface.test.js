// Hugging Face's unmodified JavaScript client makes music with the server.
import assert from "node:assert/strict";
import {test} from "node:test";
import {InferenceClient} from "@huggingface/inference";
import {errorOf, held, key, MAGIC, magicOf, spentKey, url} from "./support.js";

const music = (fields = {}, accessToken = key, options = {}) => {
  const {parameters, ...rest} = fields;
  const args = {inputs: "cello", parameters: {max_new_tokens: 50, ...parameters}, ...rest};
  return new InferenceClient(accessToken).textToAudio({endpointUrl: `${url}/hf/demo`, ...args}, options);
};

for (const format of ["flac", "wav", "mp3", "ogg"]) {
  test(`text becomes audio as ${format}`, async () => {
    const audio = await (await music({parameters: {output_format: format}})).arrayBuffer();
    assert.ok(magicOf(audio).startsWith(MAGIC[format]));
  });
}

test("a request can be aborted", async () => {
  await held(async () => {
    const signal = AbortSignal.timeout(200);
    await errorOf(music({inputs: "hold after 0"}, key, {signal}));
    assert.ok(signal.aborted);
  });
});

const statusOf = async (promise) => (await errorOf(promise)).httpResponse.status;

test("a wrong key is refused", async () => {
  assert.equal(await statusOf(music({}, "wrong")), 401);
});

test("a limit is reported", async () => {
  assert.equal(await statusOf(music({}, spentKey, {retry_on_error: false})), 429);
});

test("a refused prompt has a suggestion", async () => {
  const error = await errorOf(music({inputs: "kill yourself"}));
  assert.equal(error.httpResponse.status, 422);
  assert.match(JSON.stringify(error.httpResponse.body), /suggestion/);
});

test("a bad field is named", async () => {
  const error = await errorOf(music({parameters: {top_k: -1}}));
  assert.equal(error.httpResponse.status, 400);
  assert.match(error.message, /top_k/);
});
