/**
 * Turns at a steady pace: at most one every so many ms, in an animation frame where somebody looks.
 *
 * However fast tokens come, the page is changed only in a turn.
 *
 * @typedef {{now: number, every: number, hidden: boolean}} Turn ms, and whether nobody looks
 */
const LONGEST_FRAME_MS = 100; // a page that is hidden meanwhile is given no frame at all

export class Pace {
  #every;
  #last = -Infinity;
  /** @type {Map<object, (turn: Turn) => boolean>} who asked -> what is called */
  #waiting = new Map();
  #due = false;

  /** @param {number} every ms */
  constructor(every) {
    this.#every = every;
  }

  /**
   * Call `act` in the next turn, and in every further one while it returns true.
   *
   * @param {object} who
   * @param {(turn: Turn) => boolean} act
   */
  request(who, act) {
    this.#waiting.set(who, act);
    if (this.#due) return;
    this.#due = true;
    setTimeout(() => this.#inFrame(), Math.max(0, this.#last + this.#every - performance.now()));
  }

  #inFrame() {
    if (isHidden()) {
      this.#turn();
      return;
    }
    const fallback = setTimeout(() => {
      cancelAnimationFrame(frame);
      this.#turn();
    }, LONGEST_FRAME_MS);
    const frame = requestAnimationFrame(() => {
      clearTimeout(fallback);
      this.#turn();
    });
  }

  #turn() {
    this.#due = false;
    this.#last = performance.now();
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    const turn = { now: this.#last, every: this.#every, hidden: isHidden() };
    for (const [who, act] of waiting) if (act(turn)) this.request(who, act);
  }
}

function isHidden() {
  return globalThis.document?.hidden ?? true; // a worker has no frames either
}
