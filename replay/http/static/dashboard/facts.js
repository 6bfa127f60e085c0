/** The numbers beside an answer, from whoever knows them best: the recording, else its end, else a snapshot, the activity. */
import { age, count, moment, rate, span } from "./format.js";
import { setText } from "./page.js";

const RATE_MS = 3_000; // over how long the rate of a live generation is taken

/**
 * @param {Record<string, HTMLElement>} parts
 * @param {object} known what is known of the generation: `created`, `timing`, `end`, `live`, `subscribers`, `tokens`
 * @param {Recording} recording
 * @param {number} now unix ms, by the node's clock
 */
export function showFacts(parts, known, recording, now) {
  const { end, timing = {}, live } = known;
  const whole = recording.length > 0;
  const first = whole ? recording.first : (end?.ttft_ms ?? timing.ttft_ms);
  const tokens = whole ? recording.tokens.at(-1) : (end?.tokens ?? known.tokens);
  const lasted = end ? end.duration_ms : now - known.created;
  setText(parts.tokens, count(tokens));
  setText(parts.first, span(first));
  setText(parts.duration, known.created ? span(lasted) : "–");
  setText(parts.rate, rate(live ? recentRate(recording, now) : whole ? recording.rate : timing.tokens_per_second));
  setText(parts.subscribers, live ? count(known.subscribers) : "–");
  if (known.created) {
    const old = age(now - known.created);
    setText(parts.age, old === "now" ? old : `${old} ago`);
    parts.age.title = moment(known.created);
  }
}

/** Tokens a second in the last seconds, or since the first one where that is less. */
function recentRate(recording, now) {
  const { first } = recording;
  if (first === null) return null;
  const at = now - recording.begun;
  const from = Math.max(first, at - RATE_MS);
  const before = recording.momentAfter(recording.countAt(from)).tokens;
  return at - from < 500 ? null : (recording.tokens.at(-1) - before) / ((at - from) / 1000);
}
