import {sentFields} from "./fields.js";

const SYNCHRONOUS_SECONDS = 30;

/** Return a clip's request as programs: [title, text] for each. `key` says whether the server wants one. */
export function snippetsOf({fields: own, melodyName, continues}, base, needsKey) {
  const isLong = own.duration > SYNCHRONOUS_SECONDS;
  const reference = continues?.url && {audio_url: continues.url, end: continues.end};
  const upload = reference ? undefined : continues;
  const route = upload ? "generate-continuation" : melodyName || own.notes ? "generate-with-melody" : "generate";
  const from = reference ? {continue_from: reference} : upload?.id ? {end: upload.end} : null;
  const fields = {...sentFields(own), ...from};
  const fileField = upload ? "audio" : "melody";
  const filename = upload?.name ?? melodyName;
  const url = new URL(route + (isLong ? "-async" : ""), base).href;
  const isForm = Boolean(filename || own.notes);
  const call = {url, fields, filename, fileField, isForm, needsKey, isLong, base};
  const made = [
    ["curl", curl(call)],
    ["Python", python(call)],
    ["JavaScript", javascript(call)],
  ];
  return isForm ? made : [...made, ["WebSocket", socket(call)]];
}

const quoted = (text) => `'${String(text).replaceAll("'", "'\\''")}'`;

function curl({url, fields, filename, fileField, isForm, needsKey}) {
  const lines = [`curl -s ${quoted(url)}`];
  if (needsKey) lines.push(`-H "X-API-Key: $AUDIOCRAFT_KEY"`);
  if (isForm) {
    lines.push(...Object.entries(fields).map(([name, value]) => `-F ${quoted(`${name}=${value}`)}`));
    if (filename) lines.push(`-F ${quoted(`${fileField}=@${filename}`)}`);
  } else {
    lines.push(`-H 'Content-Type: application/json'`, `-d ${quoted(JSON.stringify(fields))}`);
  }
  return lines.join(" \\\n  ");
}

function python({url, fields, filename, fileField, isForm, needsKey, isLong}) {
  const headers = needsKey ? `, headers={"X-API-Key": os.environ["AUDIOCRAFT_KEY"]}` : "";
  const body = Object.entries(fields).map(([name, value]) => `    ${JSON.stringify(name)}: ${JSON.stringify(value)},`);
  const files = `{"${fileField}": open(${JSON.stringify(filename)}, "rb")}`;
  const send = filename ? `data=fields, files=${files}` : isForm ? "data=fields" : "json=fields";
  return [
    ...(needsKey ? ["import os", ""] : []),
    "import requests",
    "",
    "fields = {",
    ...body,
    "}",
    `response = requests.post(${JSON.stringify(url)}, ${send}${headers})`,
    "response.raise_for_status()",
    `print(response.json()[${isLong ? '"task_id"' : '"audio_url"'}])`,
  ].join("\n");
}

function javascript({url, fields, filename, fileField, isForm, needsKey, isLong}) {
  const json = JSON.stringify(fields, null, 2);
  const headers = [
    ...(isForm ? [] : [`"Content-Type": "application/json"`]),
    ...(needsKey ? [`"X-API-Key": key`] : []),
  ].join(", ");
  const form = [
    "const body = new FormData();",
    `for (const [name, value] of Object.entries(${json})) body.append(name, value);`,
    ...(filename ? [`body.append("${fileField}", file); // ${filename}, from an <input type="file">`] : []),
  ];
  return [
    ...(isForm ? form : [`const body = JSON.stringify(${json});`]),
    `const response = await fetch(${JSON.stringify(url)}, {method: "POST", headers: {${headers}}, body});`,
    "const answer = await response.json();",
    "if (!response.ok) throw new Error(answer.error);",
    `console.log(answer.${isLong ? "task_id" : "audio_url"});`,
  ].join("\n");
}

/** What this page itself sends. */
function socket({fields, base, needsKey}) {
  const url = new URL("ws/generate", base).href.replace(/^http/, "ws");
  const {output_format: file_format, ...rest} = fields;
  const protocols = needsKey ? `, ["audiocraft-api", "audiocraft-api-key." + key]` : "";
  const message = JSON.stringify({...rest, output_format: "wav", file_format}, null, 2);
  return [
    `const socket = new WebSocket(${JSON.stringify(url)}${protocols});`,
    'socket.binaryType = "arraybuffer";',
    `socket.onopen = () => socket.send(JSON.stringify(${message}));`,
    "socket.onmessage = ({data}) => console.log(data); // progress as JSON, audio as ArrayBuffer",
  ].join("\n");
}
