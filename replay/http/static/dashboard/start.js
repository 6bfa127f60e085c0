/** The form that starts a generation. */
import { element, note, partsOf } from "./page.js";
import { listModels, startGeneration } from "./node.js";

export class StartForm {
  #dialog = document.getElementById("start");
  #form = this.#dialog.querySelector("form");
  #parts = partsOf(this.#dialog);
  #started;
  #modelsAsked = false;

  /** @param {(id: string) => void} started */
  constructor(started) {
    this.#started = started;
    this.#parts.close.addEventListener("click", () => this.#dialog.close());
    this.#dialog.addEventListener("click", (event) => event.target === this.#dialog && this.#dialog.close());
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      void this.#start();
    });
    this.#form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.#form.requestSubmit();
    });
  }

  open() {
    if (this.#dialog.open) return;
    note(this.#parts.problem);
    this.#dialog.showModal();
    void this.#offerModels();
  }

  async #offerModels() {
    if (this.#modelsAsked) return;
    this.#modelsAsked = true;
    try {
      const options = (await listModels()).map((id) => element("option", { value: id }));
      document.getElementById("models").replaceChildren(...options);
    } catch {
      this.#modelsAsked = false; // names are an offer only; the next time the form is opened it is tried again
    }
  }

  async #start() {
    const { submit, problem } = this.#parts;
    submit.disabled = true;
    note(problem);
    try {
      const { id } = await startGeneration(this.#order());
      this.#dialog.close();
      this.#form.elements.prompt.value = "";
      this.#started(id);
    } catch (error) {
      note(problem, error.message);
    } finally {
      submit.disabled = false;
    }
  }

  #order() {
    const { prompt, system, model, max_tokens: most } = this.#form.elements;
    const messages = [{ role: "user", content: prompt.value }];
    if (system.value.trim()) messages.unshift({ role: "system", content: system.value });
    return {
      messages,
      ...(model.value.trim() && { model: model.value.trim() }),
      ...(most.value && { max_tokens: Number(most.value) }),
    };
  }
}
