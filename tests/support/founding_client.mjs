// The client code that existing pages carry. It never looks at a status code, sends every field, and polls a task until
// `status` is `completed` or `failed`.
//
// node founding_client.mjs SERVER KEY POLL_MILLISECONDS FUNCTION ARGUMENT... prints the last response.

const [server, key, pollMilliseconds, name, ...values] = process.argv.slice(2);
const headers = {"Content-Type": "application/json", "X-API-Key": key};

const fieldsOf = (prompt, options) => ({
  prompt,
  model_size: options.modelSize || "small",
  duration: options.duration || 5.0,
  temperature: options.temperature || 1.0,
  top_k: options.topK || 250,
  top_p: options.topP || 0.0,
  output_format: options.format || "wav",
});

async function post(path, fields) {
  const response = await fetch(server + path, {method: "POST", headers, body: JSON.stringify(fields)});
  return response.json();
}

async function generateAudio(prompt, options = {}) {
  return post("/generate", {...fieldsOf(prompt, options), return_type: options.returnType || "url"});
}

async function generateAudioAsync(prompt, options = {}) {
  const {task_id} = await post("/generate-async", fieldsOf(prompt, options));
  return pollTask(task_id);
}

async function pollTask(taskId) {
  for (;;) {
    const response = await fetch(`${server}/tasks/${taskId}`, {headers});
    const task = await response.json();
    if (task.status === "completed" || task.status === "failed") return task;
    await new Promise((resolve) => setTimeout(resolve, Number(pollMilliseconds)));
  }
}

const functions = {generateAudio, generateAudioAsync, pollTask};
console.log(JSON.stringify(await functions[name](...values.map((value) => JSON.parse(value)))));
