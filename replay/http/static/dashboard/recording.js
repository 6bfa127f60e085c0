/**
 * The recorded events of a generation: when each came, and what had been said by then.
 *
 * A page that came late has only the tail; what was before is loaded once, in pages.
 */
import { Answer } from "../replay.js";
import { listEvents } from "./node.js";

const TRIES = 4;
const LEAST_STALL_MS = 1000;
const STALL_GAPS = 5; // a pause is a stall from so many usual gaps on

export class Recording {
  begun = 0; // unix ms of the start
  times = []; // ms after the start, of each event
  tokens = []; // how many tokens there were after each event
  outputs = []; // how many events with output there were after each: tokens, reasoning, tool calls
  lengths = { text: [], reasoning: [], refusal: [] }; // how long each text was after each event
  end = null;
  notice = null;
  #answer = new Answer();
  #calls = []; // [index, event] of those that carry fragments of tool calls
  #ahead = new Map(); // seq -> event that came before those before it
  #lastId = "-1";
  #folded = { count: 0, index: 0, answer: new Answer() }; // the tool calls of the moment that was asked for last

  get length() {
    return this.times.length;
  }

  /** How long it took, in ms. */
  get duration() {
    return this.times.at(-1) ?? 0;
  }

  get complete() {
    return this.end !== null;
  }

  /** What was said, each text whole. */
  get texts() {
    return this.#answer;
  }

  /** Take an event; one that comes before its time waits. */
  add(event) {
    const seq = Number(event.id.slice(event.id.indexOf("-") + 1));
    if (seq < this.length) return;
    this.#ahead.set(seq, event);
    while (this.#ahead.has(this.length)) {
      const next = this.#ahead.get(this.length);
      this.#ahead.delete(this.length);
      this.#take(next);
    }
  }

  /**
   * Load what was before the events that come by themselves.
   *
   * @param {string} id
   * @param {number} until the seq of the last event that does not come by itself
   * @param {() => boolean} wanted whether to go on
   */
  async load(id, until, wanted) {
    while (wanted() && this.length <= until) {
      const before = this.length;
      const page = await again(() => listEvents(id, this.#lastId));
      for (const event of page.events) this.add(event);
      // Asked of another node, which has not heard of it yet.
      if (this.length === before) await pause(500);
    }
  }

  /** How many events had come by a moment. */
  countAt(ms) {
    let [low, high] = [0, this.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.times[middle] <= ms) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** What had been said after so many events. */
  momentAfter(count) {
    const at = (lengths) => (count > 0 ? lengths[count - 1] : 0);
    const { text, reasoning, refusal } = this.lengths;
    const lengths = { text: at(text), reasoning: at(reasoning), refusal: at(refusal) };
    return { texts: this.#answer, lengths, calls: this.#callsAfter(count), tokens: at(this.tokens) };
  }

  /** Time to the first token, or null. */
  get first() {
    const index = this.tokens.findIndex((tokens) => tokens > 0);
    return index < 0 ? null : this.times[index];
  }

  /** Tokens a second between the first token and the last. */
  get rate() {
    const total = this.tokens.at(-1) ?? 0;
    const last = this.times[lowest(this.tokens, total)];
    return total > 1 && last > this.first ? (total - 1) / ((last - this.first) / 1000) : null;
  }

  /**
   * The pauses in which nothing came: longer than a second, and than five usual gaps.
   *
   * @param {number} now ms after the start, of a generation that goes on
   * @returns {{from: number, to: number}[]}
   */
  stalls(now) {
    const times = this.times.filter((_, index) => this.outputs[index] > (this.outputs[index - 1] ?? 0));
    const gaps = times.slice(1).map((time, index) => time - times[index]);
    const usual = Float64Array.from(gaps).sort()[gaps.length >> 1] ?? 0;
    const least = Math.max(LEAST_STALL_MS, STALL_GAPS * usual);
    if (times.length && !this.complete) times.push(now);
    return times.slice(1).flatMap((to, index) => (to - times[index] > least ? [{ from: times[index], to }] : []));
  }

  #take(event) {
    const ms = Number(event.id.split("-")[0]);
    if (event.type === "start") [this.begun, this.notice] = [ms, event.notice ?? null];
    if (event.type === "end") this.end = event;
    const added = this.#answer.add(event);
    if (added.some(([kind]) => kind === "toolCalls")) this.#calls.push([this.length, event]);
    this.#lastId = event.id;
    this.times.push(ms - this.begun);
    this.tokens.push((this.tokens.at(-1) ?? 0) + (event.type === "token" ? 1 : 0));
    this.outputs.push((this.outputs.at(-1) ?? 0) + (added.length ? 1 : 0));
    for (const [kind, lengths] of Object.entries(this.lengths)) lengths.push(this.#answer[kind].length);
  }

  #callsAfter(count) {
    if (count < this.#folded.count) this.#folded = { count: 0, index: 0, answer: new Answer() };
    const folded = this.#folded;
    for (; folded.index < this.#calls.length && this.#calls[folded.index][0] < count; folded.index++) {
      folded.answer.add(this.#calls[folded.index][1]);
    }
    folded.count = count;
    return folded.answer.toolCalls;
  }
}

/** The first index of a rising list that has a value. */
function lowest(rising, value) {
  let [low, high] = [0, rising.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (rising[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

async function again(ask) {
  for (let tries = 1; ; tries++) {
    try {
      return await ask();
    } catch (error) {
      if (tries === TRIES || error.status === 404) throw error;
      await pause(500 * 2 ** tries);
    }
  }
}

function pause(ms) {
  return new Promise((done) => setTimeout(done, ms));
}
