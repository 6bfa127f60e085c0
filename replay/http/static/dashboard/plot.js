/** Draws how tokens came over time, with the wait for the first one and the stalls. */
import { count, counted, span } from "./format.js";
import { setText } from "./page.js";

const HEIGHT = 132;
const MARGIN = { left: 40, right: 8, top: 16, bottom: 20 };
const STEP_PX = 2; // finer than this nobody sees
const SVG = "http://www.w3.org/2000/svg";

export class Plot {
  #element;
  #caption;
  #drawn = null; // what was drawn last, to be drawn again where the page changes its width
  #scale = null;
  #head = null;

  constructor(element, caption) {
    this.#element = element;
    this.#caption = caption;
    this.#element.classList.add("plot");
    new ResizeObserver(() => this.#drawn && this.draw(...this.#drawn)).observe(element);
  }

  /**
   * @param {Recording} recording
   * @param {number} now ms after the start: the end of the time that is shown
   */
  draw(recording, now) {
    this.#drawn = [recording, now];
    const width = this.#element.clientWidth;
    if (!width || !recording.length) return;
    const last = Math.max(recording.outputs.at(-1), 1);
    const scale = scaleOf(width, Math.max(now, recording.duration, 1), last);
    const stalls = recording.stalls(now);
    const summary = summaryOf(recording, stalls);
    const drawing = draw("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "img" });
    drawing.append(
      draw("title", {}, `Tokens over time: ${summary}`),
      ...axes(scale),
      ...curves(recording, scale),
      ...stalls.map((stall) => stallMark(stall, scale)),
      ...firstMark(recording, scale),
    );
    this.#scale = scale;
    this.#element.replaceChildren(drawing);
    if (this.#head) this.showHead(this.#head.ms);
    setText(this.#caption, summary);
  }

  /** Mark a moment of the recording; null takes the mark away. */
  showHead(ms) {
    this.#head?.line.remove();
    this.#head = null;
    const drawing = this.#element.firstElementChild;
    if (ms === null || !drawing) return;
    const x = this.#scale.x(ms);
    const line = draw("line", { class: "plot-head", x1: x, x2: x, y1: MARGIN.top - 8, y2: HEIGHT - MARGIN.bottom });
    drawing.append(line);
    this.#head = { line, ms };
  }
}

function scaleOf(width, longest, most) {
  const [left, right] = [MARGIN.left, width - MARGIN.right];
  const [top, bottom] = [MARGIN.top, HEIGHT - MARGIN.bottom];
  return {
    ...{ left, right, top, bottom, longest, most },
    x: (ms) => left + ((right - left) * Math.min(ms, longest)) / longest,
    y: (value) => bottom - ((bottom - top) * value) / most,
    ms: (x) => ((x - left) / (right - left)) * longest,
  };
}

function axes(scale) {
  const { left, right, top, bottom, longest, most } = scale;
  const line = (y) => draw("line", { class: "plot-line", x1: left, x2: right, y1: y, y2: y });
  const text = (x, y, anchor, words) => draw("text", { x, y, "text-anchor": anchor }, words);
  const half = most >= 4 ? [text(left - 6, (top + bottom) / 2 + 4, "end", count(Math.round(most / 2)))] : [];
  return [
    ...[top, (top + bottom) / 2, bottom].map(line),
    ...[text(left - 6, top + 4, "end", count(most)), ...half, text(left - 6, bottom + 4, "end", "0")],
    text(left, bottom + 15, "start", "0 s"),
    text((left + right) / 2, bottom + 15, "middle", span(longest / 2)),
    text(right, bottom + 15, "end", span(longest)),
  ];
}

/** The answer's tokens as an area, and all that came, with reasoning and tool calls, as a line. */
function curves(recording, scale) {
  const all = path(recording, scale, recording.outputs);
  const tokens = path(recording, scale, recording.tokens);
  const end = scale.x(recording.duration);
  return [
    draw("path", { class: "plot-area", d: `${tokens}L${end} ${scale.bottom}L${scale.left} ${scale.bottom}Z` }),
    draw("path", { class: "plot-all", d: all }),
    draw("path", { class: "plot-tokens", d: tokens }),
  ];
}

/** Steps, at most one for every other pixel, however many events there are. */
function path(recording, scale, values) {
  const points = [`M${scale.left} ${scale.bottom}`];
  let height = scale.bottom;
  for (let x = scale.left; x <= scale.right; x += STEP_PX) {
    const ms = scale.ms(x);
    if (ms > recording.duration) break;
    const count = recording.countAt(ms);
    const next = scale.y(count ? values[count - 1] : 0);
    if (next !== height) points.push(`L${x} ${height.toFixed(1)}`, `L${x} ${next.toFixed(1)}`);
    height = next;
  }
  const end = scale.x(recording.duration).toFixed(1);
  points.push(`L${end} ${height.toFixed(1)}`, `L${end} ${scale.y(values.at(-1)).toFixed(1)}`);
  return points.join("");
}

function stallMark({ from, to }, scale) {
  const [left, right] = [scale.x(from), scale.x(to)];
  const { top, bottom } = scale;
  const words = `stalled for ${span(to - from)}`;
  const mark = draw("g", { class: "plot-stall" }, draw("title", {}, words));
  mark.append(draw("rect", { x: left, y: top, width: Math.max(1, right - left), height: bottom - top }));
  if (right - left > 44) {
    const attributes = { x: (left + right) / 2, y: top + 13, "text-anchor": "middle" };
    mark.append(draw("text", attributes, span(to - from)));
  }
  return mark;
}

function firstMark(recording, scale) {
  const ms = recording.first;
  if (ms === null) return [];
  const x = scale.x(ms);
  const late = x > (scale.left + scale.right) / 2;
  const attributes = { x: x + (late ? -4 : 4), y: scale.top - 5, "text-anchor": late ? "end" : "start" };
  return [
    draw("line", { class: "plot-first", x1: x, x2: x, y1: scale.top - 10, y2: scale.bottom }),
    draw("text", { class: "plot-first-text", ...attributes }, `first token ${span(ms)}`),
  ];
}

function summaryOf(recording, stalls) {
  const tokens = recording.tokens.at(-1);
  const others = recording.outputs.at(-1) - tokens;
  const longest = Math.max(0, ...stalls.map(({ from, to }) => to - from));
  if (tokens + others === 0) return recording.complete ? "No tokens" : "No token yet";
  return [
    tokens ? `${counted(tokens, "token")}, the first after ${span(recording.first)}` : "No token of the answer",
    ...(others ? [`${counted(others, "piece")} of reasoning, refusal or tool calls`] : []),
    stalls.length ? `${counted(stalls.length, "stall")}, the longest ${span(longest)}` : "no stalls",
  ].join("; ");
}

function draw(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}
