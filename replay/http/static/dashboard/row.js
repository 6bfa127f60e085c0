/** One generation of the list: what is known of it, and its row. */
import { age, count, moment, rate, span } from "./format.js";
import { element, setText } from "./page.js";

export const LIVE_STATUSES = new Set(["queued", "streaming"]);
const RATE_MS = 3_000; // over how long the rate of a live generation is taken
const CELLS = ["model", "age", "tokens", "rate", "first", "subscribers"];
const LABELS = { tokens: "tokens", rate: "tokens/s", first: "to first token", subscribers: "subscribers" };

export class Row {
  #samples = []; // [time, tokens] of a live generation, the last seconds
  #cells = {};
  #chip = element("span", { class: "chip" });
  #hay = "";

  /** @param {object} generation as the list or an event of the activity has it */
  constructor(generation) {
    this.id = generation.id;
    this.created = generation.created * 1000;
    this.element = this.#build();
    this.update(generation);
  }

  get live() {
    return LIVE_STATUSES.has(this.status);
  }

  /** Take over facts; an ended generation never becomes live again, however late an old event comes. */
  update(facts) {
    if (this.status && !this.live && LIVE_STATUSES.has(facts.status)) return;
    this.status = facts.status;
    this.model = facts.model ?? this.model ?? "";
    this.metadata = facts.metadata ?? this.metadata ?? {};
    this.tokens = facts.tokens ?? this.tokens ?? null;
    this.first = facts.ttft_ms ?? this.first ?? null;
    this.lasted = facts.duration_ms ?? (facts.ended ? facts.ended * 1000 - this.created : null);
    this.subscribers = facts.subscribers ?? this.subscribers ?? 0;
    this.#hay = [this.id, this.model, ...Object.values(this.metadata).map(asText)].join("\n").toLowerCase();
    this.#chip.dataset.status = this.status;
    setText(this.#chip, this.status);
    this.#chip.title = facts.error?.code ?? "";
    setText(this.#cells.model, this.model);
    this.show();
  }

  /** Take over how far a live generation is. */
  progress(activity) {
    if (!this.live) return;
    this.subscribers = activity.subscribers(this.id);
    const progress = activity.tokens(this.id);
    if (progress) {
      this.tokens = progress.tokens;
      this.first = progress.ttft ?? this.first;
      this.#samples.push([progress.at, progress.tokens]);
      while (this.#samples.length > 2 && progress.at - this.#samples[0][0] > RATE_MS) this.#samples.shift();
    }
    this.show();
  }

  /** Write what changes by itself. */
  show(now = Date.now()) {
    const old = age(now - this.created);
    setText(this.#cells.age, old === "now" ? old : `${old} ago`);
    setText(this.#cells.tokens, count(this.tokens));
    setText(this.#cells.rate, rate(this.#rate()));
    setText(this.#cells.first, span(this.first));
    setText(this.#cells.subscribers, this.live ? count(this.subscribers) : "–");
  }

  /** Whether the row is one of those that are looked for. */
  matches(statuses, text) {
    return (!statuses || statuses.has(this.status)) && this.#hay.includes(text);
  }

  /** Newer ones first. */
  isBefore(other) {
    return this.created > other.created || (this.created === other.created && this.id > other.id);
  }

  #rate() {
    if (!this.live) {
      const talked = this.lasted - (this.first ?? 0);
      return this.tokens > 1 && talked > 0 ? (this.tokens - 1) / (talked / 1000) : null;
    }
    if (this.#samples.length < 2) return null;
    const [[begun, before], [now, tokens]] = [this.#samples[0], this.#samples.at(-1)];
    return now > begun ? (tokens - before) / ((now - begun) / 1000) : null;
  }

  #build() {
    const link = element("a", { href: `/g/${encodeURIComponent(this.id)}`, class: "row-link" }, this.id);
    for (const name of CELLS) {
      const numeric = name === "model" ? name : `${name} number`;
      this.#cells[name] = element("span", { role: "cell", class: numeric, "data-label": LABELS[name] ?? "" });
    }
    this.#cells.age.title = moment(this.created);
    return element(
      "div",
      { role: "row", class: "row" },
      element("span", { role: "cell", class: "status" }, this.#chip),
      element("span", { role: "cell", class: "id" }, link),
      ...CELLS.map((name) => this.#cells[name]),
    );
  }
}

function asText(value) {
  return typeof value === "string" ? value : JSON.stringify(value);
}
