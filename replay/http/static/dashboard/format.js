/** Numbers and times as people read them. */

const whole = new Intl.NumberFormat("en");

export function count(number) {
  return number === null || number === undefined ? "–" : whole.format(number);
}

/** Tokens a second. */
export function rate(perSecond) {
  if (perSecond === null || perSecond === undefined || !Number.isFinite(perSecond)) return "–";
  return perSecond < 100 ? perSecond.toFixed(1) : whole.format(Math.round(perSecond));
}

/** How long something took: `287 ms`, `4.2 s`, `3 min 05 s`, `2 h 10 min`. */
export function span(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 1000) return `${Math.max(0, Math.round(ms))} ms`;
  if (ms < 60_000) return `${(Math.floor(ms / 100) / 10).toFixed(1)} s`;
  const seconds = Math.floor(ms / 1000);
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${pad(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${pad(Math.floor(seconds / 60) % 60)} min`;
}

/** A moment of a recording, always as wide as the ones beside it. */
export function clock(ms, longestMs) {
  const seconds = Math.floor(Math.max(0, ms) / 100) / 10;
  if (longestMs < 60_000) return `${seconds.toFixed(1)} s`;
  return `${Math.floor(seconds / 60)}:${pad(Math.floor(seconds % 60))}`;
}

/** How long ago something was: `now`, `12 s`, `5 min`, `3 h`, `8 d`. */
export function age(ms) {
  const seconds = Math.floor(ms / 1000);
  if (seconds < 2) return "now";
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86_400)} d`;
}

/** A moment in the reader's own time. */
export function moment(ms) {
  return new Date(ms).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
}

/** `1 token`, `2 tokens`. */
export function counted(number, noun) {
  return `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
}

function pad(number) {
  return String(number).padStart(2, "0");
}
