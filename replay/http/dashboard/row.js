/** One generation of the list: what is known of it, and its row. */
import { age, count, moment, rate, span } from "./format.js";
import { element, setText } from "./page.js";

export const LIVE_STATUSES = new Set(["queued", "streaming"]);
const RATE_MS = 3_000; // over how long the rate of a live generation is taken
const CELLS = ["model", "age", "tokens", "rate", "first", "viewers"];
const LABELS = { tokens: "tokens", rate: "tokens/s", first: "to first token", viewers: "viewers" };

export class Row {
  #samples = []; // [time, tokens] of a live generation, the last seconds
  #cells = {};
  #chip = element("span", { class: "chip" });
  #hay = "";

  /** @param {object} generation as the list or the feed tells it */
  constructor(generation) {
    this.id = generation.id;
    this.created = generation.created * 1000;
    this.element = this.#build();
    this.update(generation);
  }

  get live() {
    return LIVE_STATUSES.has(this.status);
  }

  /** Take over what is told; an ended generation never becomes live again, however late an old event comes. */
  update(told) {
    if (this.status && !this.live && LIVE_STATUSES.has(told.status)) return;
    this.status = told.status;
    this.model = told.model ?? this.model ?? "";
    this.metadata = told.metadata ?? this.metadata ?? {};
    this.tokens = told.tokens ?? this.tokens ?? null;
    this.first = told.ttft_ms ?? this.first ?? null;
    this.lasted = told.duration_ms ?? (told.ended ? told.ended * 1000 - this.created : null);
    this.viewers = told.subscribers ?? this.viewers ?? 0;
    this.#hay = [this.id, this.model, ...Object.values(this.metadata).map(asText)].join("\n").toLowerCase();
    this.#chip.dataset.status = this.status;
    setText(this.#chip, this.status);
    this.#chip.title = told.error?.code ?? "";
    setText(this.#cells.model, this.model);
    this.show();
  }

  /** Take over how far a live generation is. */
  progress(feed) {
    if (!this.live) return;
    this.viewers = feed.viewers(this.id);
    const told = feed.tokens(this.id);
    if (told) {
      this.tokens = told.tokens;
      this.first = told.ttft ?? this.first;
      this.#samples.push([told.at, told.tokens]);
      while (this.#samples.length > 2 && told.at - this.#samples[0][0] > RATE_MS) this.#samples.shift();
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
    setText(this.#cells.viewers, this.live ? count(this.viewers) : "–");
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
