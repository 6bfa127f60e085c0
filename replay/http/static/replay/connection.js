/**
 * An `EventSource` that comes back from everything it can come back from, and says why where it cannot.
 *
 * While it can, the browser reconnects by itself. Three things it leaves to us:
 * - an answer that is no event stream (a proxy's 502, our 404) ends it for good, and it does not say which it was;
 * - a connection that died without a word looks open for ever; keep-alives are comments, which nobody is shown;
 * - a page that wakes up should not wait for a timer.
 *
 * @typedef {{[name: string]: any}} Data What an event carries.
 * @typedef {{reason?: string, status?: number}} Detail Why it is so, as far as that is known.
 *
 * @typedef {object} Listener
 * @property {(name: string, data: Data, cursor: string) => (boolean | void)} hear false: an event is missing before this
 *   one, which is not taken
 * @property {(state: "catching-up" | "reconnecting", detail: Detail) => void} change
 * @property {(detail: Detail) => void} refuse for good
 * @property {() => void} over there is nothing after the cursor, and never will be
 */

const SILENCE_MS = 45_000; // three keep-alives missed; asking again costs one request, and nothing is sent twice
const ASLEEP_MS = 15_000; // silence after which a page that is looked at again does not trust its connection
const WATCH_MS = 5_000; // how often silence is looked for; also what opening may take
const LONGEST_PAUSE_MS = 10_000;
const TEMPORARY = new Set([408, 425, 429]); // and everything from 500 on

const AWAY = "The node cannot be reached.";
const NO_ANSWER = "No answer yet. A browser opens only six connections to one host: other tabs may hold them.";

/** @type {[EventTarget | undefined, string][]} */
const WAKING = [
  [globalThis.window, "online"],
  [globalThis.window, "pageshow"],
  [globalThis.document, "visibilitychange"],
];

export class Connection {
  #url;
  #names;
  #listener;
  /** @type {string | null} */
  #cursor = null;
  /** @type {EventSource | null} */
  #source = null;
  #closed = false;
  #failures = 0;
  #quiet = false; // opened anew though nothing was known to be wrong: nobody needs to be told
  #since = 0; // when the source was made, or said something
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #retry;
  /** @type {ReturnType<typeof setInterval> | undefined} */
  #watch;
  #wake = () => this.#wakeUp();

  /**
   * @param {URL} url
   * @param {string[]} names of the events to listen to
   * @param {Listener} listener
   */
  constructor(url, names, listener) {
    this.#url = url;
    this.#names = names;
    this.#listener = listener;
  }

  /** @param {string | null} [cursor] */
  open(cursor = null) {
    this.#cursor = cursor;
    this.#watch = setInterval(() => this.#look(), WATCH_MS);
    for (const [target, name] of WAKING) target?.addEventListener(name, this.#wake);
    this.#connect();
  }

  close() {
    this.#closed = true;
    this.#source?.close();
    clearTimeout(this.#retry);
    clearInterval(this.#watch);
    for (const [target, name] of WAKING) target?.removeEventListener(name, this.#wake);
  }

  #address() {
    const url = new URL(this.#url);
    if (this.#cursor) url.searchParams.set("after", this.#cursor);
    return url;
  }

  #connect() {
    if (this.#closed) return;
    clearTimeout(this.#retry);
    this.#source?.close();
    this.#since = Date.now();
    const source = new EventSource(this.#address());
    this.#source = source;
    source.onopen = () => this.#opened(source);
    source.onerror = () => this.#fail(source);
    for (const name of this.#names) {
      source.addEventListener(name, (event) => this.#hear(source, name, event));
    }
  }

  /** @param {EventSource} source */
  #opened(source) {
    if (this.#closed || source !== this.#source) return;
    this.#since = Date.now();
    if (!this.#quiet) this.#listener.change("catching-up", {});
  }

  /**
   * @param {EventSource} source
   * @param {string} name
   * @param {MessageEvent} event
   */
  #hear(source, name, event) {
    if (this.#closed || source !== this.#source) return;
    this.#since = Date.now();
    this.#failures = 0;
    const before = this.#cursor;
    // Moved on before the listener is called: what it throws must not make the event come again.
    this.#cursor = event.lastEventId || before;
    if (this.#listener.hear(name, JSON.parse(event.data), event.lastEventId) === false) {
      this.#cursor = before;
      this.#comeBack("Something was missing; it is fetched again.");
    }
  }

  /** @param {EventSource} source */
  #fail(source) {
    if (this.#closed || source !== this.#source) return;
    this.#since = Date.now();
    this.#quiet = false;
    if (source.readyState === EventSource.CONNECTING) this.#listener.change("reconnecting", {});
    else void this.#explain();
  }

  /** EventSource has given up and keeps the reason to itself: ask once more, and look at the answer. */
  async #explain() {
    const asking = new AbortController();
    const deadline = setTimeout(() => asking.abort(), LONGEST_PAUSE_MS);
    try {
      const headers = { Accept: "text/event-stream" };
      const response = await fetch(this.#address(), { headers, signal: asking.signal, cache: "no-store" });
      if (this.#closed) return;
      if (response.status === 204) this.#listener.over();
      else if (response.status < 400 || response.status >= 500 || TEMPORARY.has(response.status)) this.#comeBack(AWAY);
      else this.#refuse(response.status, await reasonIn(response));
    } catch {
      this.#comeBack(AWAY);
    } finally {
      clearTimeout(deadline);
      asking.abort(); // it may be a stream
    }
  }

  /**
   * @param {number} status
   * @param {string} reason
   */
  #refuse(status, reason) {
    if (this.#closed) return;
    this.close();
    this.#listener.refuse({ status, reason });
  }

  /** @param {string} reason */
  #comeBack(reason) {
    if (this.#closed) return;
    this.#source?.close();
    this.#quiet = false;
    this.#listener.change("reconnecting", { reason });
    // Spread, so that a thousand pages do not come back in the same moment.
    const pause = Math.min(LONGEST_PAUSE_MS, 500 * 2 ** this.#failures++) * (0.5 + Math.random() / 2);
    clearTimeout(this.#retry);
    this.#retry = setTimeout(() => this.#connect(), pause);
  }

  #look() {
    const silent = Date.now() - this.#since;
    const state = this.#source?.readyState;
    if (state === EventSource.OPEN && silent > SILENCE_MS) this.#connectQuietly();
    else if (state === EventSource.CONNECTING && silent >= WATCH_MS) {
      this.#quiet = false;
      this.#listener.change("reconnecting", { reason: NO_ANSWER });
      if (silent >= ASLEEP_MS) this.#connect(); // a network that swallows packets: another connection may fare better
    }
  }

  #wakeUp() {
    if (globalThis.document?.hidden) return;
    if (this.#source?.readyState !== EventSource.OPEN) this.#connect();
    else if (Date.now() - this.#since > ASLEEP_MS) this.#connectQuietly();
  }

  #connectQuietly() {
    this.#quiet = true;
    this.#connect();
  }
}

/**
 * The sentence of a problem document, or none.
 *
 * @param {Response} response
 */
async function reasonIn(response) {
  try {
    return (await response.json()).detail;
  } catch {
    return response.statusText;
  }
}
