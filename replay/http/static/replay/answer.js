/**
 * What a generation has said, folded from its events: the first choice, as the transcript of the node has it.
 *
 * @typedef {object} ToolCall
 * @property {number} index
 * @property {?string} id
 * @property {string} name
 * @property {string} arguments what the model wrote for it; JSON once it is whole
 *
 * @typedef {[kind: "text" | "reasoning" | "refusal" | "toolCalls", piece: string]} Piece What was added; the calls are
 *   in `toolCalls`, which have no piece.
 * @typedef {{[name: string]: any}} Object Whatever an upstream may send.
 */
export class Answer {
  text = "";
  reasoning = "";
  refusal = "";
  /** @type {ToolCall[]} */
  toolCalls = [];

  /**
   * Fold one event in.
   *
   * @param {Object} event
   * @returns {Piece[]} what it added, in order
   */
  add(event) {
    const choice = event.choices?.find((/** @type {Object} */ each) => each && Number(each.index ?? 0) === 0);
    const added = this.#addDelta(choice?.delta ?? choice?.message ?? {});
    return event.type === "token" ? [...added, this.#grow("text", event.content)] : added;
  }

  /**
   * Fold the message of a snapshot, or of a transcript, in.
   *
   * @param {Object} message
   * @returns {Piece[]} what it added, in order
   */
  addMessage(message) {
    const added = this.#addDelta(message);
    const parts = Array.isArray(message.content) ? message.content : [{ text: message.content }];
    const text = parts.map((/** @type {Object} */ part) => part.text ?? "").join("");
    return text ? [...added, this.#grow("text", text)] : added;
  }

  /**
   * Everything but the visible text: a token event has that by itself.
   *
   * @param {Object} delta
   */
  #addDelta(delta) {
    /** @type {Piece[]} */
    const added = [];
    const reasoning =
      delta.reasoning_content ?? delta.reasoning ?? delta.reasoning_text ?? delta.thinking ?? thoughts(delta.content);
    if (reasoning && typeof reasoning === "string") added.push(this.#grow("reasoning", reasoning));
    if (delta.refusal && typeof delta.refusal === "string") added.push(this.#grow("refusal", delta.refusal));
    const calls = delta.tool_calls ?? (delta.function_call ? [{ index: 0, function: delta.function_call }] : []);
    if (Array.isArray(calls) && calls.length) {
      for (const [position, fragment] of calls.entries()) this.#addCall(fragment, position);
      added.push(["toolCalls", ""]);
    }
    return added;
  }

  /**
   * @param {"text" | "reasoning" | "refusal"} kind
   * @param {string} piece
   * @returns {Piece}
   */
  #grow(kind, piece) {
    this[kind] += piece;
    return [kind, piece];
  }

  /**
   * @param {Object} fragment
   * @param {number} position
   */
  #addCall(fragment, position) {
    const index = fragment.index ?? position;
    let call = this.toolCalls.find((each) => each.index === index);
    if (!call) {
      call = { index, id: null, name: "", arguments: "" };
      this.toolCalls.push(call);
    }
    const called = fragment.function ?? fragment.custom ?? {};
    call.id = fragment.id || call.id;
    // Some servers repeat the name with every fragment.
    if (called.name && called.name !== call.name) call.name += called.name;
    const written = called.arguments ?? called.input ?? "";
    call.arguments += typeof written === "string" ? written : JSON.stringify(written);
  }
}

/**
 * The thoughts in a content that is a list of parts; some servers give them a list of their own.
 *
 * @param {any} content
 */
function thoughts(content) {
  if (!Array.isArray(content)) return "";
  const thinking = content.flatMap((part) => part?.thinking ?? []);
  return thinking.map((each) => (typeof each === "string" ? each : (each?.text ?? ""))).join("");
}
