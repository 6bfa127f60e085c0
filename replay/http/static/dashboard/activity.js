/**
 * The activity that all views of this tab share: what becomes of generations, how far they are, and who follows them.
 *
 * A tab that nobody looks at lets go of it, since a browser allows six connections to a host; looked at again, it
 * goes on from its cursor.
 */
import { followActivity } from "../replay.js";

const HIDDEN_MS = 10_000; // somebody who only looks something up in another tab is soon back
const HEARD_MS = 5_000; // a node that has said nothing for so long produces nothing, or is gone

export class Activity {
  #listeners = new Set();
  #cursor = null;
  #stop = null;
  #wanted = false;
  #pausing = 0;
  #nodes = new Map(); // node -> what it said last, and when
  state = "connecting";

  constructor() {
    document.addEventListener("visibilitychange", () => this.#look());
  }

  /**
   * Hear of changes, progress, states, and of a cursor that is lost.
   *
   * @param {{changed?: Function, progressed?: Function, entered?: Function, lost?: Function}} listener
   * @returns {() => void} no more
   */
  listen(listener) {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Follow from a cursor, or, where nothing is followed yet, from now. */
  follow(cursor = null) {
    if (this.#wanted && cursor === null) return;
    this.#wanted = true;
    this.#cursor = cursor;
    this.#open();
  }

  /** Tokens of a live generation, and when the node said so; null where no node has. */
  tokens(id) {
    for (const { at, generations } of this.#heard()) {
      if (generations[id]) return { at, tokens: generations[id].tokens, ttft: generations[id].ttft_ms };
    }
    return null;
  }

  /** How many follow a generation, on all nodes. */
  subscribers(id) {
    return this.#heard().reduce((sum, { watching }) => sum + (watching[id] ?? 0), 0);
  }

  #heard() {
    const now = Date.now();
    return [...this.#nodes.values()].filter(({ at }) => now - at < HEARD_MS);
  }

  #open() {
    this.#stop?.();
    this.#stop = followActivity({
      after: this.#cursor,
      onChange: (change) => {
        this.#cursor = change.cursor ?? this.#cursor;
        this.#tell("changed", change);
      },
      onProgress: ({ node, generations = {}, watching = {} }) => {
        this.#nodes.set(node, { at: Date.now(), generations, watching });
        this.#tell("progressed");
      },
      onState: (state, detail) => {
        this.state = state;
        this.#tell("entered", state, detail);
      },
      onReset: () => this.#tell("lost"),
    });
  }

  #look() {
    clearTimeout(this.#pausing);
    if (!this.#wanted) return;
    if (document.hidden) {
      this.#pausing = setTimeout(() => {
        this.#stop?.();
        this.#stop = null;
      }, HIDDEN_MS);
    } else if (!this.#stop) this.#open();
  }

  #tell(name, ...facts) {
    for (const listener of this.#listeners) listener[name]?.(...facts);
  }
}
