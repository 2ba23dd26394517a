/** Format a position as minutes and seconds: 75.2 is "1:15". */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds + 1e-6));
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

/** Format a length in words: 1 is "1 second", 90 is "1 minute 30 seconds". */
export function inWords(seconds) {
  const rounded = seconds < 10 ? Math.round(seconds * 10) / 10 : Math.round(seconds);
  const minutes = Math.floor(rounded / 60);
  const rest = Math.round((rounded - 60 * minutes) * 10) / 10;
  const parts = [];
  if (minutes) parts.push(`${minutes} ${minutes === 1 ? "minute" : "minutes"}`);
  if (rest || !minutes) parts.push(`${rest} ${rest === 1 ? "second" : "seconds"}`);
  return parts.join(" ");
}

/** Format a length briefly: 90 is "1:30", 8 is "8 s". */
export const brief = (seconds) => (seconds >= 60 ? clock(seconds) : `${Math.round(seconds * 10) / 10} s`);

/** Format when something happened, in the words of a person who looks back: "just now", "5 min ago", "14 Nov". */
export function ago(time, now = Date.now()) {
  const minutes = Math.floor((now - time) / 60_000);
  if (minutes < 1) return "just now";
  if (minutes < 60) return `${minutes} min ago`;
  if (minutes < 24 * 60) return `${Math.floor(minutes / 60)} h ago`;
  return new Date(time).toLocaleDateString("en", {day: "numeric", month: "short"});
}

/** Return a file name made of the first words of a prompt. */
export function filenameOf(prompt, seed, extension) {
  const words = prompt
    .toLowerCase()
    .normalize("NFKD")
    .match(/[a-z0-9]+/g) ?? ["clip"];
  return `${words.slice(0, 6).join("-").slice(0, 60)}-${seed}.${extension}`;
}

/** The extension of the files of an output format. */
export const extensionOf = (format) => (format.startsWith("wav") ? "wav" : format);

/** Format the time of day, with the date if it is not today. */
export function timeOfDay(time) {
  const date = new Date(time);
  const clockTime = date.toLocaleTimeString("en", {hour: "2-digit", minute: "2-digit", hour12: false});
  return date.toDateString() === new Date().toDateString() ? clockTime : `${clockTime} tomorrow`;
}
