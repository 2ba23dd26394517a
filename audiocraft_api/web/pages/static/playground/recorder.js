const EXTENSIONS = {"audio/webm": "webm", "audio/mp4": "m4a", "audio/ogg": "ogg"};

/** Record the microphone. Return {stop, result}; `result` resolves to {blob, name}, after `maxSeconds` at most. */
export async function record(maxSeconds) {
  // The browser's processing is made for speech and damages music.
  const raw = {echoCancellation: false, noiseSuppression: false, autoGainControl: false};
  const stream = await navigator.mediaDevices.getUserMedia({audio: raw});
  const recorder = new MediaRecorder(stream);
  const parts = [];
  const result = new Promise((resolve) => {
    recorder.ondataavailable = ({data}) => parts.push(data);
    recorder.onstop = () => {
      stream.getTracks().forEach((track) => track.stop());
      const type = recorder.mimeType.split(";")[0];
      resolve({blob: new Blob(parts, {type}), name: `recording.${EXTENSIONS[type] ?? "webm"}`});
    };
  });
  recorder.start();
  const stop = () => recorder.state === "recording" && recorder.stop();
  setTimeout(stop, 1000 * maxSeconds);
  return {stop, result};
}
