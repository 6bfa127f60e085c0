/** The page of one generation: joins late, follows smoothly, says where it stands, and replays what has ended. */
import { follow } from "../replay.js";
import { AnswerView } from "./answer-view.js";
import { showFacts } from "./facts.js";
import { count, span } from "./format.js";
import { cancelGeneration } from "./node.js";
import { announce, copy, fromTemplate, note, setText } from "./page.js";
import { Player } from "./player.js";
import { Plot } from "./plot.js";
import { Recording } from "./recording.js";
import { Scroll } from "./scroll.js";
import { Share } from "./share.js";

const DRAW_MS = 500; // how often numbers and plot move on while it is live
const CONFIRM_MS = 5_000; // how long the question waits for its answer

const STANDINGS = {
  connecting: "Connecting…",
  "catching-up": "Catching up…",
  live: "Live",
  reconnecting: "Reconnecting…",
};
const ENDINGS = {
  stop: "the model was done",
  length: "the limit of tokens was reached",
  tool_calls: "the model calls tools",
  function_call: "the model calls a function",
  content_filter: "stopped by a content filter",
};

export class GenerationPage {
  #activity;
  #missing;
  #parts;
  #view;
  #plot;
  #share;
  #scroll;
  #recording = new Recording();
  #player = null;
  #known = { live: false, created: null, end: null };
  #state = "connecting";
  #joined = false;
  #skew = Infinity; // how far this clock is ahead of the node's, as far as events have told
  #confirming = 0;
  #stopFollowing;
  #ticking;
  #left = false;

  /**
   * @param {string} id
   * @param {Activity} activity
   * @param {(reason: string) => void} missing called where there is no such generation
   */
  constructor(id, activity, missing) {
    this.id = id;
    this.#activity = activity;
    this.#missing = missing;
    const { root, parts } = fromTemplate("generation-page");
    this.element = root;
    this.#parts = parts;
    this.#view = new AnswerView(parts);
    this.#plot = new Plot(parts.plot, parts.caption);
    this.#share = new Share(id, root, parts);
    this.#scroll = new Scroll(parts.jump);
    setText(parts.id, id);
    parts["copy-id"].addEventListener("click", () => copy(id, parts["copy-id"]));
    parts.copy.addEventListener("click", () => copy(this.#shownText(), parts.copy));
    parts.stop.addEventListener("click", () => this.#askToStop());
    this.#share.showCommand({ live: true });
    activity.follow();
    this.#ticking = setInterval(() => this.#tick(), DRAW_MS);
    this.#stopFollowing = this.#follow();
  }

  get title() {
    const mark = this.#known.live ? "● " : "";
    return `${mark}${this.#known.model ?? this.id} · ${this.#known.status ?? "connecting"} · replay`;
  }

  show() {
    scrollTo(0, 0);
  }

  hide() {
    this.#left = true;
    this.#stopFollowing();
    this.#player?.stop();
    this.#scroll.stop();
    clearInterval(this.#ticking);
    clearTimeout(this.#confirming);
  }

  #follow() {
    return follow(this.id, {
      onSnapshot: (snapshot) => this.#load(snapshot),
      onEvent: (event) => this.#take(event),
      onText: (piece) => this.#append("text", piece),
      onReasoning: (piece) => this.#append("reasoning", piece),
      onRefusal: (piece) => this.#append("refusal", piece),
      onToolCalls: (calls) => {
        this.#view.showCalls(calls);
        this.#grown();
      },
      onReset: () => this.#clear(),
      onState: (state, detail) => this.#enter(state, detail),
    });
  }

  #load(snapshot) {
    this.#learn({ ...snapshot, created: snapshot.created * 1000 });
    this.#share.showMetadata(snapshot.metadata);
    const until = Number(snapshot.last_event_id.split("-")[1]);
    void this.#loadRecording(this.#recording, until);
  }

  /** What was said before this page came: for the plot, and to be replayed. */
  async #loadRecording(recording, until) {
    try {
      await recording.load(this.id, until, () => !this.#left && recording === this.#recording);
      if (this.#left || recording !== this.#recording) return;
      this.#tick();
      this.#offerReplay();
    } catch (error) {
      setText(this.#parts.caption, `The timeline could not be loaded. ${error.message}`);
    }
  }

  #take(event) {
    const ms = Number(event.id.split("-")[0]);
    this.#skew = Math.min(this.#skew, Date.now() - ms);
    this.#recording.add(event);
    if (event.type === "start") this.#learn({ ...event, status: "queued", created: event.created * 1000 });
    else if (event.type !== "end" && this.#known.status === "queued") this.#learn({ status: "streaming" });
  }

  #learn(facts) {
    Object.assign(this.#known, facts);
    const { model, status } = this.#known;
    this.#known.live = status === "queued" || status === "streaming";
    setText(this.#parts.model, model || "no model");
    setText(this.#parts.status, status);
    this.#parts.status.dataset.status = status;
    document.title = this.title;
  }

  #append(kind, piece) {
    // A model that thinks for minutes is worth watching; an answer that is there is worth more.
    if (kind === "reasoning" && this.#state === "live" && !this.#parts.text.firstChild) this.#parts.reasoning.open = true;
    this.#view.append(kind, piece);
    this.#parts.copy.disabled = !this.#shownText();
    this.#grown();
  }

  #grown() {
    this.#parts.waiting.hidden = true;
    if (this.#state === "live") this.#scroll.grown();
  }

  #clear() {
    this.#recording = new Recording();
    this.#view.clear();
    this.#known = { live: false, created: null, end: null };
    announce("The recording has changed; it is shown from the start.");
  }

  #enter(state, detail) {
    this.#state = state;
    if (state === "lost" && detail.status === 404) this.#missing(this.id);
    else if (state === "lost") this.#say("lost", `Cannot be followed: ${detail.reason ?? detail.status}`);
    else if (state === "ended") this.#end(detail);
    else this.#say(state, STANDINGS[state], state === "reconnecting" ? detail.reason : undefined);
    if (state === "live") this.#join();
    this.#parts.stop.hidden = !this.#known.live || state === "lost";
    this.#wait();
  }

  /** The past has been shown: the first time, go to where the answer is being written. */
  #join() {
    if (this.#joined) this.#scroll.grown();
    else this.#scroll.toEnd();
    this.#joined = true;
  }

  #say(state, text, reason = "") {
    const { standing } = this.#parts;
    standing.dataset.state = state;
    setText(standing, text);
    note(this.#parts.problem, ...(reason ? [reason] : []));
    announce(`${text} ${reason}`);
  }

  #end(end) {
    this.#learn({ end, status: end.status });
    const reason = ENDINGS[end.finish_reason] ?? end.finish_reason;
    const words = end.status === "completed" && reason ? `Ended: ${reason}` : `Ended: ${end.status}`;
    this.#say("ended", end.error ? `${words}, ${end.error.code}` : words);
    if (end.status !== "completed") note(this.#parts.ending, ...explain(end));
    this.#scroll.rest();
    this.#share.showCommand({ live: false });
    this.#tick();
    this.#offerReplay();
  }

  #wait() {
    const { waiting, text, reasoning, refusal, calls } = this.#parts;
    waiting.hidden = Boolean(text.firstChild || calls.firstChild || !reasoning.hidden || !refusal.hidden);
    setText(waiting, this.#known.end ? "The model said nothing." : "Waiting for the first token…");
  }

  #tick() {
    if (document.hidden || this.#left) return;
    const now = this.#now();
    this.#known.subscribers = Math.max(1, this.#activity.subscribers(this.id)); // whoever sees this watches
    this.#known.tokens = this.#activity.tokens(this.id)?.tokens;
    if (!this.#player) showFacts(this.#parts, this.#known, this.#recording, now);
    if (this.#player || !this.#recording.length) return;
    this.#plot.draw(this.#recording, this.#known.live ? now - this.#recording.begun : this.#recording.duration);
    note(this.#parts.notice, ...(this.#recording.notice ? [this.#recording.notice] : []));
  }

  #now() {
    return Date.now() - (Number.isFinite(this.#skew) && this.#known.live ? this.#skew : 0);
  }

  #offerReplay() {
    if (this.#player || !this.#recording.complete || this.#state !== "ended") return;
    this.#tick();
    let untouched = true; // until somebody plays, what is shown is what is there
    this.#player = new Player(this.#parts, this.#recording, (moment) => {
      if (untouched && moment.ended) return;
      untouched = false;
      this.#showMoment(moment);
    });
  }

  #showMoment(moment) {
    this.#view.showMoment(moment);
    this.#plot.showHead(moment.ended ? null : moment.ms);
    this.#parts.ending.hidden = !moment.ended || this.#known.end.status === "completed";
    setText(this.#parts.tokens, count(moment.tokens));
    this.#parts.waiting.hidden = true;
    const speed = moment.playing || !moment.ended ? this.#player.speed : null;
    this.#share.showCommand({ live: false, speed });
    if (moment.playing) this.#scroll.grown();
    else this.#scroll.rest();
  }

  #shownText() {
    return this.#parts.text.textContent || this.#parts["refusal-text"].textContent;
  }

  /** Stop at once where nobody else watches; else ask, since it is stopped for all. */
  #askToStop() {
    const others = (this.#known.subscribers ?? 1) - 1;
    if (others < 1 || this.#confirming) {
      void this.#stop();
      return;
    }
    setText(this.#parts.stop, `Stop for ${others === 1 ? "one other" : `${others} others`} too?`);
    this.#confirming = setTimeout(() => {
      this.#confirming = 0;
      setText(this.#parts.stop, "Stop");
    }, CONFIRM_MS);
  }

  async #stop() {
    const { stop, problem } = this.#parts;
    clearTimeout(this.#confirming);
    this.#confirming = 0;
    stop.disabled = true;
    setText(stop, "Stopping…");
    try {
      await cancelGeneration(this.id);
    } catch (error) {
      note(problem, `It could not be stopped. ${error.message}`);
      stop.disabled = false;
      setText(stop, "Stop");
    }
  }
}

/** How it ended, in words, where it did not complete. */
function explain({ status, error, duration_ms: lasted }) {
  const heading = document.createElement("strong");
  heading.textContent = { failed: "Failed", cancelled: "Stopped", interrupted: "Interrupted" }[status] ?? status;
  if (!error) return [heading, ` after ${span(lasted)}. The answer above is what had been said until then.`];
  const code = document.createElement("code");
  code.textContent = error.code;
  return [heading, " ", code, document.createElement("br"), error.message ?? ""];
}
