/** Shows what a generation has said: the answer, and apart from it reasoning, a refusal and tool calls. */
import { counted } from "./format.js";
import { element, setText } from "./page.js";

export class AnswerView {
  #parts;
  #texts;

  /** @param {Record<string, HTMLElement>} parts of the page */
  constructor(parts) {
    this.#parts = parts;
    this.#texts = {
      text: new TextView(parts.text),
      reasoning: new TextView(parts["reasoning-text"]),
      refusal: new TextView(parts["refusal-text"]),
    };
  }

  /** Append to `text`, `reasoning` or `refusal`. */
  append(kind, piece) {
    this.#texts[kind].append(piece);
    this.#label();
  }

  /** Show these tool calls, of which the last ones may still grow. */
  showCalls(calls) {
    const { calls: list } = this.#parts;
    while (list.children.length > calls.length) list.lastElementChild.remove();
    for (const [index, call] of calls.entries()) {
      if (!list.children[index]) list.append(card());
      fill(list.children[index], call);
    }
  }

  /** Show a moment of a recording: the whole texts, and how much of each was there by then. */
  showMoment({ texts, lengths, calls }) {
    for (const [kind, view] of Object.entries(this.#texts)) view.showUpTo(texts[kind], lengths[kind]);
    this.showCalls(calls);
    this.#label();
  }

  clear() {
    for (const view of Object.values(this.#texts)) view.showUpTo("", 0);
    this.showCalls([]);
    this.#label();
  }

  #label() {
    const { reasoning, refusal } = this.#texts;
    this.#parts.reasoning.hidden = reasoning.length === 0;
    this.#parts.refusal.hidden = refusal.length === 0;
    setText(this.#parts["reasoning-size"], counted(reasoning.length, "character"));
  }
}

const BLOCK = 2_000; // characters after which the next line begins a new block
const LONGEST_BLOCK = 16_000; // where there are no lines, a block ends after a word

/**
 * A text that only grows at its end, or is cut there, however long it is.
 *
 * It is kept in blocks, since an engine lays out a block as a whole: appending to 300 kB in one block takes some
 * 40 ms, to the last of many blocks less than one. A block ends with its line, so that the blocks look like one text.
 */
export class TextView {
  length = 0;
  #element;
  #blocks = []; // text nodes

  constructor(element) {
    this.#element = element;
  }

  append(text) {
    let start = 0;
    while (start < text.length) {
      const last = this.#blocks.at(-1);
      const full = last === undefined || isFull(last.data);
      const stop = start + roomFor(text, start, full ? "" : last.data);
      const piece = text.slice(start, stop);
      if (full) this.#begin(piece);
      else last.appendData(piece);
      start = stop;
    }
    this.length += text.length;
  }

  /** Show the first `length` characters of a text, of which what is shown already is a beginning, or the other way. */
  showUpTo(text, length) {
    if (length >= this.length) {
      this.append(text.slice(this.length, length));
      return;
    }
    while (this.length > length) {
      const last = this.#blocks.at(-1);
      const surplus = this.length - length;
      if (surplus < last.length) {
        last.deleteData(last.length - surplus, surplus);
        this.length = length;
      } else {
        last.parentElement.remove();
        this.#blocks.pop();
        this.length -= last.length;
      }
    }
  }

  #begin(piece) {
    const block = element("div", { class: "block" }, piece);
    this.#element.append(block);
    this.#blocks.push(block.firstChild);
  }
}

function isFull(data) {
  return data.length >= LONGEST_BLOCK || (data.length >= BLOCK && data.endsWith("\n"));
}

/** How many characters of a text, from an index on, belong to the block that has `data` already. */
function roomFor(text, start, data) {
  const line = text.indexOf("\n", start + Math.max(0, BLOCK - data.length - 1));
  const most = LONGEST_BLOCK - data.length;
  if (line >= 0 && line - start < most) return line + 1 - start;
  if (text.length - start <= most) return text.length - start;
  const word = text.lastIndexOf(" ", start + most - 1) + 1 - start;
  const cut = word > 0 ? word : most;
  // Not between the two halves of a character.
  return cut > 1 && isHighSurrogate(text.charCodeAt(start + cut - 1)) ? cut - 1 : cut;
}

function isHighSurrogate(code) {
  return code >= 0xd800 && code <= 0xdbff;
}

function card() {
  const id = element("code", { class: "call-id" });
  const heading = element("h2", {}, element("span", { class: "call-word" }, "Tool call "), element("code"));
  return element("section", { class: "call" }, element("div", { class: "call-head" }, heading, id), element("pre"));
}

function fill(shown, call) {
  setText(shown.querySelector("h2 code"), call.name || "…");
  setText(shown.querySelector(".call-id"), call.id ?? "");
  setText(shown.querySelector("pre"), pretty(call.arguments));
}

/** Arguments that are whole JSON, set out in lines; anything else as it came. */
function pretty(text) {
  if (!/[}\]]\s*$/.test(text)) return text;
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
