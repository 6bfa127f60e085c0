/** Plays a recording with its own pauses: play and pause, speed, and a slider to any moment. */
import { clock, counted } from "./format.js";
import { setText } from "./page.js";

const TURN_MS = 50; // at most one moment is shown in this time
const LONGEST_STEP_MS = 250; // where no frame came for longer (a hidden tab), time stood still

export class Player {
  #parts;
  #recording;
  #show;
  #ms; // where it stands
  #playing = false;
  #last = 0;
  #frame = 0;
  speed = 1;

  /**
   * @param {Record<string, HTMLElement>} parts
   * @param {Recording} recording that has ended
   * @param {(moment: {ms: number, playing: boolean, ended: boolean}) => void} show
   */
  constructor(parts, recording, show) {
    this.#parts = parts;
    this.#recording = recording;
    this.#show = show;
    this.#ms = recording.duration;
    const { player, play, slider, whole } = parts;
    slider.max = Math.max(1, recording.duration);
    setText(whole, clock(recording.duration, recording.duration));
    play.addEventListener("click", () => (this.#playing ? this.pause() : this.play()));
    slider.addEventListener("input", () => this.seek(Number(slider.value)));
    player.querySelector("fieldset").addEventListener("change", (event) => this.#setSpeed(Number(event.target.value)));
    player.hidden = false;
    this.#tell();
  }

  play() {
    if (this.#ms >= this.#recording.duration) this.#ms = 0;
    this.#playing = true;
    this.#last = performance.now();
    this.#tell();
    this.#frame = requestAnimationFrame((now) => this.#turn(now));
  }

  pause() {
    this.#playing = false;
    cancelAnimationFrame(this.#frame);
    this.#tell();
  }

  /** Go to a moment; a recording that plays goes on from there. */
  seek(ms) {
    this.#ms = Math.min(ms, this.#recording.duration);
    if (this.#playing && this.#ms >= this.#recording.duration) this.pause();
    else this.#tell();
  }

  stop() {
    cancelAnimationFrame(this.#frame);
  }

  #setSpeed(speed) {
    this.speed = speed;
    this.#tell();
  }

  #turn(now) {
    if (!this.#playing) return;
    if (now - this.#last >= TURN_MS) {
      this.#ms += Math.min(now - this.#last, LONGEST_STEP_MS) * this.speed;
      this.#last = now;
      if (this.#ms >= this.#recording.duration) {
        this.#ms = this.#recording.duration;
        this.pause();
        return;
      }
      this.#tell();
    }
    this.#frame = requestAnimationFrame((next) => this.#turn(next));
  }

  #tell() {
    const { play, slider, now } = this.#parts;
    const { duration } = this.#recording;
    const ended = this.#ms >= duration;
    const count = ended ? this.#recording.length : this.#recording.countAt(this.#ms);
    const moment = this.#recording.momentAfter(count);
    setText(play, this.#playing ? "Pause" : ended ? "Replay" : "Play");
    setText(now, clock(this.#ms, duration));
    slider.value = String(this.#ms);
    const spoken = `${clock(this.#ms, duration)} of ${clock(duration, duration)}, ${counted(moment.tokens, "token")}`;
    slider.setAttribute("aria-valuetext", spoken);
    this.#show({ ...moment, ms: this.#ms, playing: this.#playing, ended });
  }
}
