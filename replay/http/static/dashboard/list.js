/** The list of generations: live ones first, then the newest; it follows the activity and asks for nothing twice. */
import { counted } from "./format.js";
import { announce, element, fromTemplate, note } from "./page.js";
import { LIVE, listGenerations } from "./node.js";
import { Row } from "./row.js";

const FIRST_PAGE = 100;
const NEXT_PAGES = 200;
const MOST_LIVE = 1000;
const LONGEST_PAUSE_MS = 10_000;
const TYPING_MS = 300; // after the last letter the node is asked too: it knows more than is shown

export class ListPage {
  title = "Generations · replay";
  #activity;
  #start;
  #parts;
  #form;
  #rows = new Map(); // id -> Row
  #groups;
  #next = null;
  #loads = 0; // the last one wins
  #typing = 0;
  #scrolled = 0;
  #focused = null;

  /**
   * @param {Activity} activity
   * @param {() => void} start opens the form that starts a generation
   */
  constructor(activity, start) {
    this.#activity = activity;
    this.#start = start;
    const { root, parts } = fromTemplate("list-page");
    this.element = root;
    this.#parts = parts;
    this.#form = root.querySelector("form");
    this.#groups = { live: new Group(parts.live), ended: new Group(parts.ended) };
    this.#form.addEventListener("submit", (event) => event.preventDefault());
    this.#form.elements.status.addEventListener("change", () => this.load());
    this.#form.elements.text.addEventListener("input", () => this.#type());
    parts.more.addEventListener("click", () => this.#loadMore());
    activity.listen({
      changed: (change) => this.#change(change),
      progressed: () => this.#eachLive((row) => row.progress(activity)),
      lost: () => this.load(),
    });
    setInterval(() => this.#tick(), 1000);
    this.load();
  }

  /** As it was left. */
  show() {
    scrollTo(0, this.#scrolled);
    this.#focused?.focus({ preventScroll: true });
  }

  hide() {
    this.#scrolled = scrollY;
    this.#focused = this.element.contains(document.activeElement) ? document.activeElement : null;
  }

  /** Load the list anew, and follow the activity from there; tries again until the node answers. */
  async load() {
    const load = ++this.#loads;
    for (let pause = 1000; load === this.#loads; pause = Math.min(2 * pause, LONGEST_PAUSE_MS)) {
      try {
        await this.#loadOnce(load);
        return;
      } catch (error) {
        note(this.#parts.problem, `The list cannot be loaded. ${error.message} Trying again…`);
        await new Promise((done) => setTimeout(done, pause));
      }
    }
  }

  async #loadOnce(load) {
    const wanted = this.#wanted();
    // Live ones first, however old: of the two answers, the earlier cursor, so that no change falls in between.
    const live = await listGenerations({ status: LIVE, limit: MOST_LIVE, least: MOST_LIVE });
    const page = await listGenerations({ ...wanted, limit: FIRST_PAGE });
    if (load !== this.#loads) return;
    note(this.#parts.problem);
    this.#rows.clear();
    for (const group of Object.values(this.#groups)) group.clear();
    this.#next = page.next;
    this.#add([...live.generations, ...page.generations]);
    this.#activity.follow(live.feed_cursor);
  }

  async #loadMore() {
    const { more, problem } = this.#parts;
    const load = this.#loads;
    more.disabled = true;
    try {
      const page = await listGenerations({ ...this.#wanted(), before: this.#next, limit: NEXT_PAGES });
      if (load !== this.#loads) return;
      note(problem);
      this.#next = page.next;
      this.#add(page.generations);
      announce(`${counted(page.generations.length, "more generation")}`);
    } catch (error) {
      note(problem, `No more could be loaded. ${error.message}`);
    } finally {
      more.disabled = false;
    }
  }

  #add(generations) {
    const added = [];
    for (const generation of generations) {
      const known = this.#rows.get(generation.id);
      if (known) this.#update(known, generation);
      else {
        const row = new Row(generation);
        this.#rows.set(row.id, row);
        added.push(row);
      }
    }
    for (const group of Object.values(this.#groups)) group.add(added.filter((row) => this.#groupOf(row) === group));
    this.#filter();
  }

  #change({ generation_id: id, ...change }) {
    const row = this.#rows.get(id);
    if (change.type === "deleted") this.#remove(row);
    else if (row) this.#update(row, change);
    else this.#add([{ id, ...change }]);
    this.#filter();
  }

  #remove(row) {
    if (!row) return;
    this.#groupOf(row).remove(row);
    this.#rows.delete(row.id);
  }

  #update(row, facts) {
    const before = this.#groupOf(row);
    row.update(facts);
    const group = this.#groupOf(row);
    if (group === before) return;
    const focused = row.element.contains(document.activeElement) ? document.activeElement : null;
    before.remove(row);
    group.add([row]);
    focused?.focus({ preventScroll: true });
  }

  #groupOf(row) {
    return row.live ? this.#groups.live : this.#groups.ended;
  }

  #wanted() {
    const { status, text } = this.#form.elements;
    return { status: status.value, text: text.value.trim() };
  }

  #type() {
    this.#filter();
    clearTimeout(this.#typing);
    this.#typing = setTimeout(() => this.load(), TYPING_MS);
  }

  #filter() {
    const { status, text } = this.#wanted();
    const statuses = status ? new Set(status.split(",")) : null;
    let shown = 0;
    for (const row of this.#rows.values()) {
      const hidden = !row.matches(statuses, text.toLowerCase());
      if (row.element.hidden !== hidden) row.element.hidden = hidden;
      shown += hidden ? 0 : 1;
    }
    const { table, empty, more } = this.#parts;
    table.hidden = shown === 0;
    more.hidden = this.#next === null;
    empty.hidden = shown > 0;
    if (!shown) empty.replaceChildren(...this.#emptiness(Boolean(statuses || text)));
  }

  #emptiness(filtered) {
    if (filtered) {
      const button = element("button", { class: "button", type: "button" }, "Show all");
      button.addEventListener("click", () => {
        this.#form.reset();
        this.#form.elements.text.focus();
        void this.load();
      });
      return [element("h2", {}, "Nothing matches"), element("p", {}, button)];
    }
    const button = element("button", { class: "button primary", type: "button" }, "Start the first one");
    button.addEventListener("click", this.#start);
    const line = `curl ${location.origin}/generations -d '{"prompt": "Why is the sky blue?"}'`;
    return [
      element("h2", {}, "No generations yet"),
      element("p", {}, "Every answer that goes through this service appears here while it is being written."),
      element("p", {}, button),
      element("p", { class: "aside" }, "Or from a terminal:"),
      element("pre", { class: "line", tabindex: "0" }, line),
    ];
  }

  #tick() {
    if (document.hidden || !this.element.isConnected) return;
    const now = Date.now();
    for (const row of this.#rows.values()) row.show(now);
  }

  #eachLive(act) {
    for (const row of this.#groups.live.rows) act(row);
  }
}

/** Rows in their order, newest first. */
class Group {
  rows = [];
  #element;

  constructor(element) {
    this.#element = element;
  }

  add(rows) {
    // Newest first is how lists come and how the activity grows: the index is nearly always one of the two ends.
    for (const row of rows.sort((one, other) => (one.isBefore(other) ? -1 : 1))) {
      const index = this.#indexOf(row);
      this.#element.insertBefore(row.element, this.rows[index]?.element ?? null);
      this.rows.splice(index, 0, row);
    }
  }

  remove(row) {
    this.rows.splice(this.rows.indexOf(row), 1);
    row.element.remove();
  }

  clear() {
    this.rows = [];
    this.#element.replaceChildren();
  }

  #indexOf(row) {
    let [low, high] = [0, this.rows.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.rows[middle].isBefore(row)) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
