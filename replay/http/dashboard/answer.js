/**
 * What a generation has said, folded from its events: the first choice, as the transcript of the node has it.
 *
 * @typedef {object} ToolCall
 * @property {number} index
 * @property {?string} id
 * @property {string} name
 * @property {string} arguments what the model wrote for it; JSON once it is whole
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
   * @returns {[("text" | "reasoning" | "refusal" | "toolCalls"), string][]} what it added, in order
   */
  add(event) {
    const choice = event.choices?.find((each) => (each.index ?? 0) === 0);
    const added = this.#addDelta(choice?.delta ?? {});
    return event.type === "token" ? [...added, this.#grow("text", event.content)] : added;
  }

  /** Fold the message of a snapshot, or of a transcript, in. */
  addMessage(message) {
    const added = this.#addDelta(message);
    return typeof message.content === "string" && message.content
      ? [...added, this.#grow("text", message.content)]
      : added;
  }

  /** Everything but the visible text: a token event has that by itself. */
  #addDelta(delta) {
    const added = [];
    const reasoning = delta.reasoning_content ?? delta.reasoning;
    if (reasoning && typeof reasoning === "string") added.push(this.#grow("reasoning", reasoning));
    if (delta.refusal && typeof delta.refusal === "string") added.push(this.#grow("refusal", delta.refusal));
    const calls = delta.tool_calls ?? (delta.function_call ? [{ index: 0, function: delta.function_call }] : []);
    if (Array.isArray(calls) && calls.length) {
      for (const [place, fragment] of calls.entries()) this.#addCall(fragment, place);
      added.push(["toolCalls", ""]);
    }
    return added;
  }

  #grow(kind, piece) {
    this[kind] += piece;
    return [kind, piece];
  }

  #addCall(fragment, place) {
    const index = fragment.index ?? place;
    let call = this.toolCalls.find((each) => each.index === index);
    if (!call) {
      call = { index, id: null, name: "", arguments: "" };
      this.toolCalls.push(call);
    }
    const called = fragment.function ?? fragment.custom ?? {};
    call.id = fragment.id || call.id;
    // Some servers repeat the name with every fragment.
    if (called.name && called.name !== call.name) call.name += called.name;
    call.arguments += called.arguments ?? called.input ?? "";
  }
}
