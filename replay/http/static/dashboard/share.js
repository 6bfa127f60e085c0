/** What takes an answer elsewhere: files, the command line, what its owner wrote to it. */
import { announce, copy, element, note, setText } from "./page.js";
import { getTranscript, pathOf } from "./node.js";

const SUFFIXES = { "text/plain": "txt", "text/markdown": "md", "application/json": "json" };

export class Share {
  #id;
  #parts;

  constructor(id, root, parts) {
    this.#id = id;
    this.#parts = parts;
    for (const button of root.querySelectorAll("[data-download]")) {
      button.addEventListener("click", () => this.#download(button.dataset.download));
    }
    parts["copy-curl"].addEventListener("click", () => copy(parts.curl.textContent, parts["copy-curl"]));
  }

  /** The line that would show the same: live, whole, or replayed at a speed. */
  showCommand({ live, speed = null }) {
    const url = `${location.origin}${pathOf(this.#id)}`;
    if (live) setText(this.#parts.curl, `curl -N '${url}/events'`);
    else if (speed !== null) setText(this.#parts.curl, `curl -N '${url}/events?speed=${speed}'`);
    else setText(this.#parts.curl, `curl '${url}/transcript' -H 'Accept: text/plain'`);
  }

  showMetadata(metadata) {
    const rows = Object.entries(metadata).map(([key, value]) => {
      const text = typeof value === "string" ? value : JSON.stringify(value);
      return element("div", {}, element("dt", {}, key), element("dd", {}, text));
    });
    note(this.#parts.metadata, ...rows);
  }

  async #download(type) {
    try {
      const address = URL.createObjectURL(await getTranscript(this.#id, type));
      element("a", { href: address, download: `${this.#id}.${SUFFIXES[type]}` }).click();
      setTimeout(() => URL.revokeObjectURL(address), 60_000); // the browser reads it in its own time
      announce("Downloaded");
    } catch (error) {
      note(this.#parts.problem, `The transcript could not be downloaded. ${error.message}`);
    }
  }
}
