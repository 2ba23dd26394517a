// Uses the JavaScript client with strict types. Each line after `@ts-expect-error` must be refused by the compiler.
import {
  AudioCraft,
  AudioCraftError,
  generateAudio,
  InvalidRequestError,
  PromptRefusedError,
} from "audiocraft-api-client";

const client = new AudioCraft({baseUrl: "http://localhost:5000", apiKey: "key"});

const result = await client.generateAudio("lo-fi beat", {modelSize: "demo", topK: 250, duration: 2, format: "mp3"});
const seconds: number = result.duration;
const address: string = client.audioUrl(result);

const task = await client.generateAudioAsync("pads", {
  onProgress: (task) => task.state,
  signal: AbortSignal.timeout(1),
});
const audio: Blob = await client.download(task);

await client.generateAudio("string quartet", {notes: "C4:1 E4:1 -:1", bpm: 90, modelSize: "demo"});
await client.tasks.submit("string quartet", {melody: audio, audio});

const stream = await client.stream(null, {segments: [{prompt: "piano", duration: 1, negativePrompt: "drums"}]});
for await (const bytes of stream) console.log(bytes.byteLength, stream.seed.toFixed());

const session = await client.live("pads", {seed: 7, lead: 1});
const frame: number = await session.steer({prompts: ["jazz", {text: "drums", weight: -0.5}], bpm: null});
for await (const block of session) console.log(block.byteLength);

const page = await client.tasks.list();
console.log(page.tasks.length, seconds, address, audio.size, frame, (await client.models()).length);

try {
  await generateAudio("cello", {baseUrl: "http://localhost:5000", returnType: "base64"});
} catch (error) {
  if (error instanceof PromptRefusedError) console.log(error.suggestion?.length);
  else if (error instanceof InvalidRequestError) console.log(error.errors?.duration?.[0]);
  else if (error instanceof AudioCraftError) console.log(error.code, error.retryAfter);
}

// @ts-expect-error: there is no such option
await client.generateAudio("cello", {modelsize: "demo"});
// @ts-expect-error: a number
await client.generateAudio("cello", {duration: "2"});
// @ts-expect-error: there is no such format
await client.generateAudio("cello", {format: "midi"});
// @ts-expect-error: a stream has no URL
client.audioUrl(stream);
// @ts-expect-error: a melody is a file or notes
await client.generateAudio("cello", {notes: "C4:1", melody: audio});
// @ts-expect-error: a segment needs a prompt
await client.stream(null, {segments: [{duration: 1}]});
// @ts-expect-error: there is no such control
await session.steer({volume: 1});
