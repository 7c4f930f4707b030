// Which experts are used: one cell for each expert of each layer, stronger by the root of its uses.

import { count } from "./format.js";

const TALLEST = 320;
const SHADES = 64;

export class HeatMap {
  #counts = [];

  /** `parts`: the elements map, most, axis and readout. */
  constructor(parts) {
    this.parts = parts;
    parts.map.addEventListener("pointermove", (event) => this.#point(event));
    parts.map.addEventListener("pointerleave", () => this.#summarise());
    new ResizeObserver(() => this.#draw()).observe(parts.map.parentElement);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#draw());
  }

  /** Shows counts[layer][expert]. */
  show(counts) {
    this.#counts = counts;
    this.parts.map.parentElement.hidden = counts.length === 0;
    this.#draw();
    this.#summarise();
  }

  #draw() {
    const { map, most, axis } = this.parts;
    const layers = this.#counts.length;
    const width = Math.floor(map.clientWidth * devicePixelRatio);
    if (layers === 0 || width === 0) return;
    const experts = this.#counts[0].length;
    const columns = Math.min(experts, width);
    const tall = Math.floor((TALLEST * devicePixelRatio) / layers);
    const cell = Math.max(2, Math.min(Math.floor(16 * devicePixelRatio), tall));
    map.width = width;
    map.height = cell * layers;
    map.style.height = `${map.height / devicePixelRatio}px`;
    const context = map.getContext("2d");
    const shades = shadesOf(getComputedStyle(map));
    const highest = Math.max(1, ...this.#counts.map((row) => Math.max(...row)));
    const gap = width / columns >= 5 && cell >= 5 ? 1 : 0;
    this.#counts.forEach((row, layer) => {
      for (let column = 0; column < columns; column++) {
        // Where experts outnumber pixels a column shows the most used of its experts.
        const of = (at) => Math.floor((at * experts) / columns);
        const value = Math.max(...row.slice(of(column), of(column + 1)));
        const [left, right] = [column, column + 1].map((at) => Math.round((at * width) / columns));
        context.fillStyle = shades[Math.round(SHADES * Math.sqrt(value / highest))];
        context.fillRect(left, layer * cell, right - left - gap, cell - gap);
      }
    });
    axis.textContent = `${count(experts)} experts →`;
    most.textContent = times(highest);
  }

  #summarise() {
    const cells = this.#counts.flatMap((row, layer) => row.map((value, expert) => ({ value, layer, expert })));
    const used = cells.filter(({ value }) => value > 0);
    const most = used.reduce((a, b) => (b.value > a.value ? b : a), used[0]);
    this.#say(
      most
        ? `${count(used.length)} of ${count(cells.length)} experts used. Most: ${place(most)}.`
        : "No expert has been used yet.",
    );
    this.parts.map.setAttribute("aria-label", this.parts.readout.textContent);
  }

  #point(event) {
    const box = this.parts.map.getBoundingClientRect();
    const layer = Math.floor(((event.clientY - box.top) / box.height) * this.#counts.length);
    const row = this.#counts[layer] ?? [];
    const expert = Math.floor(((event.clientX - box.left) / box.width) * row.length);
    if (expert in row) this.#say(place({ layer, expert, value: row[expert] }));
  }

  #say(text) {
    this.parts.readout.textContent = text[0].toUpperCase() + text.slice(1);
  }
}

/** What was added since `before`; all of it where the server began to count anew. */
export function difference(counts, before) {
  const rows = counts.map((row, layer) => row.map((value, expert) => value - (before[layer]?.[expert] ?? 0)));
  return rows.some((row) => row.some((value) => value < 0)) ? counts : rows;
}

/** From the style sheet's colour of what is never used over a middle one to the most used. */
function shadesOf(style) {
  const [never, some, most] = ["never", "some", "most"].map((name) => style.getPropertyValue(`--${name}`));
  const mixed = (from, to, part) => `color-mix(in oklab, ${from}, ${to} ${100 * part}%)`;
  return Array.from({ length: SHADES + 1 }, (_, shade) => {
    const place = (2 * shade) / SHADES;
    return place < 1 ? mixed(never, some, place) : mixed(some, most, place - 1);
  });
}

function place({ layer, expert, value }) {
  return `layer ${layer}, expert ${expert}: ${times(value)}`;
}

function times(value) {
  return value === 1 ? "once" : `${count(value)} times`;
}
