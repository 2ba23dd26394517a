// Replicate's unmodified JavaScript client makes music with the server.
import assert from "node:assert/strict";
import {test} from "node:test";
import Replicate from "replicate";
import {bytesOf, errorOf, held, key, MAGIC, magicOf, spentKey, url} from "./support.js";

const connect = (auth) => new Replicate({auth, baseUrl: `${url}/v1`, fileEncodingStrategy: "upload"});
const client = connect(key);
const input = {prompt: "cello", duration: 1, model_version: "demo"};

for (const format of ["wav", "mp3", "flac"]) {
  test(`run returns audio as ${format}`, async () => {
    const output = await client.run("meta/musicgen", {input: {...input, output_format: format}});
    assert.ok(magicOf(await bytesOf(output)).startsWith(MAGIC[format]));
  });
}

test("a prediction reports progress and can be canceled", async () => {
  await held(async () => {
    const body = {model: "meta/musicgen", input: {...input, prompt: "hold after 5"}};
    let prediction = await client.predictions.create(body);
    const deadline = Date.now() + 20_000;
    while (!prediction.logs.includes("25/50")) {
      assert.ok(Date.now() < deadline, prediction.logs);
      prediction = await client.predictions.get(prediction.id);
    }
    await client.predictions.cancel(prediction.id);
    const ended = await client.wait(prediction, {interval: 50});
    assert.deepEqual([ended.status, ended.output], ["canceled", null]);
  });
});

test("run polls, and shows each state", async () => {
  const seen = [];
  const options = {input, wait: {mode: "poll", interval: 50}};
  await client.run("meta/musicgen", options, (prediction) => seen.push(prediction.status));
  assert.equal(seen.at(0), "starting");
  assert.equal(seen.at(-1), "succeeded");
});

test("an aborted run is canceled", async () => {
  await held(async () => {
    const controller = new AbortController();
    const options = {input: {...input, prompt: "hold after 0"}, signal: controller.signal};
    const states = [];
    await client.run("meta/musicgen", {...options, wait: {mode: "poll", interval: 50}}, (prediction) => {
      states.push(prediction.id);
      controller.abort();
    });
    const deadline = Date.now() + 20_000;
    const state = async () => (await client.predictions.get(states[0])).status;
    while ((await state()) !== "canceled") assert.ok(Date.now() < deadline);
  });
});

test("a failed prediction is an error", async () => {
  const run = client.run("meta/musicgen", {input: {...input, prompt: "fail after 3"}});
  assert.match((await errorOf(run)).message, /failed/);
});

test("a file is uploaded, used, listed and deleted", async () => {
  const wav = await bytesOf(await client.run("meta/musicgen", {input}));
  const file = await client.files.create(new File([wav], "melody.wav", {type: "audio/wav"}), {take: 2});
  assert.deepEqual([file.name, file.size, file.metadata], ["melody.wav", wav.length, {take: 2}]);
  assert.ok((await client.files.list()).results.some((found) => found.id === file.id));
  assert.equal((await client.files.get(file.id)).checksums.sha256, file.checksums.sha256);
  const melody = {...input, model_version: "demo-melody", input_audio: file.urls.get};
  const output = await client.run("meta/musicgen", {input: melody});
  assert.equal(magicOf(await bytesOf(output)), "RIFF");
  assert.equal(await client.files.delete(file.id), true);
  // The client uploads files of the input itself.
  const uploaded = await client.run("meta/musicgen", {input: {...melody, input_audio: Buffer.from(wav)}});
  assert.equal(magicOf(await bytesOf(uploaded)), "RIFF");
});

test("a wrong key is refused", async () => {
  const error = await errorOf(connect("wrong").run("meta/musicgen", {input}));
  assert.equal(error.response.status, 401);
});

test("a limit is reported", async () => {
  const limited = connect(spentKey);
  // The client repeats limited requests after the time in Retry-After, which is too long for a test.
  limited.fetch = async (...request) => {
    const response = await fetch(...request);
    if (response.status === 429) throw new Error(`limited: ${(await response.json()).title}`);
    return response;
  };
  assert.match((await errorOf(limited.run("meta/musicgen", {input}))).message, /Too Many Requests/);
});

test("a refused prompt has a suggestion", async () => {
  const error = await errorOf(client.run("meta/musicgen", {input: {prompt: "kill yourself"}}));
  assert.equal(error.response.status, 422);
  assert.match(error.message, /findahelpline/);
});

test("a bad field is named", async () => {
  const error = await errorOf(client.run("meta/musicgen", {input: {...input, duration: 900}}));
  assert.match(error.message, /input\.duration/);
});
