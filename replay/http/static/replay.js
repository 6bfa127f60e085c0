/**
 * Follow generations of a replay node from a page of the same origin.
 *
 *     import { follow } from "/replay.js";
 *     const stop = follow("gen_…", { onText: (piece) => answer.append(piece) });
 *
 * How it works. The browser's own `EventSource` reads the events and comes back after a cut with the id of the last
 * one it has. This module adds what `EventSource` does not do:
 *
 * - It finds out why a stream was refused. What is gone is reported; what may come back is tried again.
 * - It notices connections that died without a word (a laptop that slept, a network that changed).
 * - It counts. Event ids have no holes, so an event that comes twice is dropped, and one that is missing is fetched.
 * - It is smooth. Text is handed over at most every `every` ms; a burst is spread over a few frames and is never shown
 *   more than a quarter of a second late. What was said before the page came is handed over at once.
 *
 * @typedef {import("./replay/answer.js").ToolCall} ToolCall
 * @typedef {import("./replay/answer.js").Piece} Piece
 * @typedef {import("./replay/connection.js").Detail} Detail
 * @typedef {import("./replay/connection.js").Data} Data
 * @typedef {import("./replay/pace.js").Turn} Turn
 *
 * @typedef {"connecting" | "catching-up" | "live" | "reconnecting" | "ended" | "lost"} State
 *
 * @typedef {object} Ending How a generation ended, as its `end` event says.
 * @property {"completed" | "failed" | "cancelled" | "interrupted"} status
 * @property {?string} finish_reason
 * @property {?{code: string, message: string}} error
 * @property {?object} usage
 *
 * @typedef {object} Options
 * @property {(piece: string, id: string) => void} [onText] More of the visible answer: append it.
 * @property {(piece: string, id: string) => void} [onReasoning] More of what the model thought.
 * @property {(piece: string, id: string) => void} [onRefusal] More of the model's refusal.
 * @property {(calls: ToolCall[], id: string) => void} [onToolCalls] All tool calls, as far as they have come.
 * @property {(id: string) => void} [onReset] What was shown is void: clear it, everything comes again.
 * @property {(snapshot: Data, id: string) => void} [onSnapshot] The transcript that the texts above begin with.
 * @property {(event: Data, id: string) => void} [onEvent] Each event, as soon as it is here, exactly once.
 * @property {(state: State, detail: Detail | Ending, id: string) => void} [onState]
 * @property {(end: Ending, id: string) => void} [onEnd] After the last text.
 * @property {boolean} [snapshot] Begin with one snapshot instead of every past event; true unless told otherwise.
 * @property {string} [after] Begin after this cursor: an event's id; of several generations, an event's `cursor`.
 * @property {number} [every] The least time between two deliveries, in ms; 50 unless told otherwise.
 * @property {string | URL} [base] The node's URL; the one that this module came from unless told otherwise.
 */
import { Answer } from "./replay/answer.js";
import { Connection } from "./replay/connection.js";
import { Pace } from "./replay/pace.js";

export { Answer };

const HERE = new URL(".", import.meta.url);
const NAMES = ["start", "token", "delta", "end", "snapshot", "live", "reset", "expired"];
/** @type {Record<Piece[0], "onText" | "onReasoning" | "onRefusal" | "onToolCalls">} */
const CALLBACKS = { text: "onText", reasoning: "onReasoning", refusal: "onRefusal", toolCalls: "onToolCalls" };
const SPREAD_MS = 200; // ms over which a burst is spread; with a frame or two more, a quarter of a second
const MOST_AT_ONCE = 100; // generations on one connection; the server takes no more

/**
 * Follow one generation.
 *
 * @param {string} id
 * @param {Options} [options]
 * @returns {() => void} stops following; nothing is called any more
 */
export function follow(id, options = {}) {
  const follower = new Follower([id], `generations/${encodeURIComponent(id)}/events`, options, true);
  return () => follower.stop();
}

/**
 * Follow up to a hundred generations on one connection; a browser opens only six to a host.
 *
 * @param {string[]} ids
 * @param {Options} [options] every callback is told the generation's id last
 * @returns {() => void} stops following
 */
export function followAll(ids, options = {}) {
  if (ids.length < 1 || ids.length > MOST_AT_ONCE) {
    throw new RangeError(`${ids.length} generations: expected 1 to ${MOST_AT_ONCE} on one connection`);
  }
  const query = new URLSearchParams(ids.map((id) => ["generation", id]));
  const follower = new Follower(ids, `events?${query}`, options, false);
  return () => follower.stop();
}

/**
 * Follow what becomes of all generations: `created`, `first_token`, `ended`, `deleted`, and about once a second their
 * progress.
 *
 * @param {object} options
 * @param {(change: Data) => void} [options.onChange] one change of one generation's life, and its `cursor`
 * @param {(progress: Data) => void} [options.onProgress] what one node produces, and who watches there
 * @param {() => void} [options.onReset] changes were missed: load the list again
 * @param {(state: State, detail: Detail) => void} [options.onState]
 * @param {string | null} [options.after] the `feed_cursor` of a list; without one the feed begins now
 * @param {string | URL} [options.base]
 * @returns {() => void} stops following
 */
export function followActivity({ onChange, onProgress, onReset, onState, after, base = HERE }) {
  const names = ["created", "first_token", "ended", "deleted", "progress", "live", "reset"];
  /** @type {(name: string, data: Data, cursor: string) => void} */
  const hear = (name, data, cursor) => {
    if (name === "live") onState?.("live", {});
    else if (name === "reset") onReset?.();
    else if (name === "progress") onProgress?.(data);
    else onChange?.({ ...data, cursor });
  };
  const connection = new Connection(new URL("feed?progress=1", base), names, {
    hear,
    change: (state, detail) => onState?.(state, detail),
    refuse: (detail) => onState?.("lost", detail),
    over: () => onState?.("lost", {}),
  });
  connection.open(after);
  onState?.("connecting", {});
  return () => connection.close();
}

/** What is read on one connection, of one generation or of several. */
class Follower {
  #stories;
  #connection;
  #base;

  /**
   * @param {string[]} ids
   * @param {string} path
   * @param {Options} options
   * @param {boolean} alone
   */
  constructor(ids, path, options, alone) {
    this.#base = options.base ?? HERE;
    const pace = new Pace(options.every ?? 50);
    this.#stories = new Map(ids.map((id) => [id, new Story(id, options, pace, alone)]));
    const url = new URL(path, this.#base);
    if (options.snapshot !== false) url.searchParams.set("mode", "snapshot");
    this.#connection = new Connection(url, NAMES, {
      hear: (name, data, eventId) => this.#hear(name, data, eventId),
      change: (state, detail) => this.#each((story) => story.enter(state, detail)),
      refuse: (detail) => this.#each((story) => story.lose(detail)),
      over: () => this.#each((story) => this.#ask(story)),
    });
    this.#each((story) => story.enter("connecting", {}));
    this.#connection.open(options.after);
  }

  stop() {
    this.#connection.close();
    for (const story of this.#stories.values()) story.leave();
  }

  /**
   * Returns false where an event is missing before this one.
   *
   * @param {string} name
   * @param {Data} data
   * @param {string} eventId
   */
  #hear(name, data, eventId) {
    const [only] = this.#stories.values();
    const story = /** @type {Story} */ (this.#stories.get(data.generation_id) ?? only);
    const taken = story.take(name, data, eventId);
    this.#closeIfAllEnded();
    return taken;
  }

  /**
   * How it ended, where its `end` had been read before the page came.
   *
   * @param {Story} story
   */
  async #ask(story) {
    try {
      const response = await fetch(new URL(`generations/${encodeURIComponent(story.id)}`, this.#base));
      if (response.ok) story.end(await response.json());
      else story.lose({ status: response.status });
    } catch {
      story.lose({ reason: "The node cannot be reached." });
    }
    this.#closeIfAllEnded();
  }

  /** @param {(story: Story) => void} act */
  #each(act) {
    for (const story of this.#stories.values()) if (!story.over) act(story);
  }

  #closeIfAllEnded() {
    if ([...this.#stories.values()].every((story) => story.over)) this.#connection.close();
  }
}

/** One generation as far as it has been read and handed over. */
class Story {
  over = false; // nothing more will come
  /** @type {(name: string, ...facts: any[]) => void} */
  #tell;
  #pace;
  #alone; // its events' ids are its own, not a cursor over several
  #answer = new Answer();
  /** @type {[...Piece, number][]} kind, piece, when it came; to be handed over in this order */
  #waiting = [];
  /** @type {State | null} */
  #state = null;
  #begun = false; // something has been handed over
  #lastSeq = -1;

  /**
   * @param {string} id
   * @param {Options & Record<string, any>} options
   * @param {Pace} pace
   * @param {boolean} alone
   */
  constructor(id, options, pace, alone) {
    this.id = id;
    this.#pace = pace;
    this.#alone = alone;
    this.#tell = (name, ...facts) => options[name]?.(...facts, id);
    if (options.after && alone) this.#lastSeq = seqOf(options.after);
  }

  /**
   * @param {State} state
   * @param {Detail | Ending} [detail]
   */
  enter(state, detail = {}) {
    if (state === this.#state && !("reason" in detail && detail.reason)) return;
    this.#state = state;
    this.#tell("onState", state, detail);
  }

  leave() {
    this.over = true;
    this.#waiting = [];
    this.#tell = () => {};
  }

  /** @param {Detail} detail */
  lose(detail) {
    this.#handOver(Infinity);
    this.over = true;
    this.enter("lost", detail);
  }

  /** @param {Ending} ending */
  end(ending) {
    this.#handOver(Infinity);
    this.over = true;
    this.enter("ended", ending);
    this.#tell("onEnd", ending);
  }

  /**
   * Returns false where an event is missing before this one.
   *
   * @param {string} name
   * @param {Data} data
   * @param {string} eventId
   */
  take(name, data, eventId) {
    if (this.over) return true;
    if (name === "live") this.#catchUp();
    else if (name === "reset") this.#clear();
    else if (name === "snapshot") this.#load(data);
    else if (name === "expired") this.lose({ status: 404 });
    else return this.#add(data, eventId);
    return true;
  }

  #catchUp() {
    this.#handOver(Infinity);
    this.enter("live");
  }

  #clear() {
    this.#answer = new Answer();
    this.#waiting = [];
    this.#begun = false;
    this.#lastSeq = -1;
    this.#tell("onReset");
  }

  /** @param {Data} snapshot */
  #load(snapshot) {
    if (this.#begun) this.#clear();
    this.#begun = true;
    this.#lastSeq = seqOf(snapshot.last_event_id);
    this.#tell("onSnapshot", snapshot);
    this.#wait(this.#answer.addMessage(snapshot.message));
    this.#handOver(Infinity);
  }

  /**
   * @param {Data} data
   * @param {string} eventId
   */
  #add(data, eventId) {
    if (this.#alone) {
      const seq = seqOf(eventId);
      if (seq <= this.#lastSeq) return true; // it came twice
      if (seq > this.#lastSeq + 1) return false; // something is missing
      this.#lastSeq = seq;
    }
    this.#begun = true;
    // Its seq is known before anybody hears of it: whatever a callback throws, it does not come again.
    this.#wait(this.#answer.add(data));
    this.#tell("onEvent", this.#alone ? { ...data, id: eventId } : { ...data, cursor: eventId });
    if (data.type === "end") this.end(/** @type {Ending & Data} */ (data));
    return true;
  }

  /** @param {Piece[]} pieces */
  #wait(pieces) {
    if (!pieces.length) return;
    const now = performance.now();
    for (const [kind, piece] of pieces) this.#waiting.push([kind, piece, now]);
    this.#pace.request(this, (turn) => this.#deliver(turn));
  }

  /**
   * Hand over this turn's share; returns whether something is left.
   *
   * @param {Turn} turn
   */
  #deliver({ now, every, hidden }) {
    if (!this.#waiting.length) return false;
    const behind = now - this.#waiting[0][2];
    const turns = this.#state === "live" && !hidden ? Math.floor((SPREAD_MS - behind) / Math.max(every, 16)) : 1;
    this.#handOver(Math.ceil(this.#waiting.length / Math.max(1, turns)));
    return this.#waiting.length > 0;
  }

  /** @param {number} count */
  #handOver(count) {
    const parts = this.#waiting.splice(0, count);
    for (let start = 0; start < parts.length; ) {
      const [kind] = parts[start];
      let stop = start;
      while (stop < parts.length && parts[stop][0] === kind) stop++;
      const pieces = parts.slice(start, stop).map((part) => part[1]);
      this.#tell(CALLBACKS[kind], kind === "toolCalls" ? this.#answer.toolCalls : pieces.join(""));
      start = stop;
    }
  }
}

/** @param {string} eventId */
function seqOf(eventId) {
  return eventId === "-1" ? -1 : Number(eventId.slice(eventId.indexOf("-") + 1));
}
