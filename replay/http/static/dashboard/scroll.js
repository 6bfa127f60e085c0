/** Keeps the end of a growing page in view, for a reader who is there; whoever scrolled up is left alone. */
const NEAR_PX = 60; // from the end, and still at it

export class Scroll {
  #button;
  #atEnd = true;
  #look = () => {
    this.#atEnd = isAtEnd();
    if (this.#atEnd) this.#button.hidden = true;
  };

  /** @param {HTMLElement} button that takes a reader back to the end */
  constructor(button) {
    this.#button = button;
    addEventListener("scroll", this.#look, { passive: true });
    addEventListener("resize", this.#look, { passive: true });
    button.addEventListener("click", () => this.toEnd());
  }

  /** The page has grown at its end. */
  grown() {
    if (this.#atEnd) scrollToEnd();
    else this.#button.hidden = false;
  }

  toEnd() {
    this.#atEnd = true;
    this.#button.hidden = true;
    scrollToEnd();
  }

  /** Nothing grows any more. */
  rest() {
    this.#button.hidden = true;
  }

  stop() {
    removeEventListener("scroll", this.#look);
    removeEventListener("resize", this.#look);
  }
}

function scrollToEnd() {
  const page = document.scrollingElement;
  page.scrollTop = page.scrollHeight;
}

function isAtEnd() {
  const page = document.scrollingElement;
  return page.scrollHeight - page.scrollTop - page.clientHeight < NEAR_PX;
}
