// The server of the tests, and how to control it.
import {existsSync, writeFileSync, unlinkSync} from "node:fs";

export const {TEST_URL: url, TEST_KEY: key, TEST_SPENT_KEY: spentKey, TEST_HOLD: holdFile} = process.env;

/** Pause generations with the prompt `hold after N` during the call; the function it gets ends the pause early. */
export async function held(call) {
  const release = () => existsSync(holdFile) && unlinkSync(holdFile);
  writeFileSync(holdFile, "");
  try {
    return await call(release);
  } finally {
    release();
  }
}

/** Return all bytes of a stream. */
export async function bytesOf(stream) {
  const blocks = [];
  for await (const block of stream) blocks.push(block);
  return Buffer.concat(blocks);
}

/** Return the error that a promise rejects with. */
export async function errorOf(promise) {
  return promise.then(
    () => {
      throw new Error("The request succeeded.");
    },
    (error) => error,
  );
}

/** The first bytes of each audio format. */
export const MAGIC = {wav: "RIFF", flac: "fLaC", ogg: "OggS", opus: "OggS", mp3: "ID3"};

export const magicOf = (audio) => Buffer.from(audio).toString("latin1", 0, 4);
