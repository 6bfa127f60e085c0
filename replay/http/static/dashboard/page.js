/** What every view of the page needs: its template, its parts, the announcer, the clipboard. */

/**
 * A copy of a template, and those of its elements that have a name.
 *
 * @returns {{root: HTMLElement, parts: Record<string, HTMLElement>}}
 */
export function fromTemplate(id) {
  const root = document.getElementById(id).content.firstElementChild.cloneNode(true);
  return { root, parts: partsOf(root) };
}

export function partsOf(root) {
  return Object.fromEntries([...root.querySelectorAll("[data-part]")].map((each) => [each.dataset.part, each]));
}

/** An element with attributes and children; strings become text, never markup. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Change the text only where it differs: what does not change costs no layout, and is not read out again. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

let announcing = 0;

/** Tell those who listen to the page; of what comes quickly one after the other, the last. */
export function announce(text) {
  clearTimeout(announcing);
  announcing = setTimeout(() => setText(document.getElementById("announcer"), text), 400);
}

/** Put a text on the clipboard, and say on the button that it is there. */
export async function copy(text, button) {
  const done = await write(text);
  const word = done ? "Copied" : "Not copied";
  const before = button.dataset.word ?? button.textContent;
  button.dataset.word = before;
  button.textContent = word;
  announce(word);
  setTimeout(() => (button.textContent = before), 1500);
}

async function write(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return writeByCommand(text);
  }
}

/** Browsers have a clipboard only for pages that came over TLS or from this machine; the old way works everywhere. */
function writeByCommand(text) {
  const focused = document.activeElement;
  const area = element("textarea", { class: "hidden", "aria-hidden": "true" });
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return done;
}

/** Show or hide a note with a text; without a text it is hidden. */
export function note(part, ...children) {
  part.hidden = children.length === 0;
  part.replaceChildren(...children);
}
