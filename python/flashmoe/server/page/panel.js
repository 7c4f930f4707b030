// The panel at the side: experts in use, settings, state of the server.

import { getJson } from "./api.js";
import { byId, element } from "./dom.js";
import { bytes, count } from "./format.js";
import { HeatMap, difference } from "./heat.js";

const NARROW = matchMedia("(max-width: 959px)");
const EVERY_MS = 1000;
const KEY = "flashmoe.settings";

export class Panel {
  #counts = null;
  #before = null;
  #timer = 0;

  constructor() {
    this.panel = byId("panel");
    this.form = byId("settings");
    this.heat = new HeatMap({
      map: byId("heat-map"),
      most: byId("heat-most"),
      axis: byId("heat-axis"),
      readout: byId("heat-readout"),
    });
    this.#loadSettings();
    this.form.addEventListener("input", () => this.#saveSettings());
    byId("heat-answer").addEventListener("change", () => this.#drawHeat());
    byId("panel-toggle").addEventListener("click", () => this.#open(this.panel.hidden));
    byId("panel-close").addEventListener("click", () => this.close());
    NARROW.addEventListener("change", () => this.#show(!NARROW.matches));
    this.#show(!NARROW.matches);
  }

  /** Whether it lies over the conversation. */
  get covers() {
    return NARROW.matches && !this.panel.hidden;
  }

  close() {
    this.#open(false);
  }

  /** Settings that are set, by the names of the form's fields. */
  get settings() {
    const entries = [...new FormData(this.form)].filter(([, value]) => value.trim() !== "");
    const isNumber = (name) => this.form.elements[name].type === "number";
    return Object.fromEntries(entries.map(([name, value]) => [name, isNumber(name) ? Number(value) : value]));
  }

  /** The first setting that no server takes is shown, and said why. */
  check() {
    const wrong = this.form.querySelector(":invalid");
    if (!wrong) return true;
    this.#show(true);
    wrong.reportValidity();
    return false;
  }

  /** An answer begins: what was counted so far is not its. */
  async begin() {
    await this.refresh(true);
    this.#tick();
  }

  /** It has ended; the server may need a moment to notice. */
  async end() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.refresh(), EVERY_MS);
    await this.refresh();
  }

  /** `asStart`: what the server says now is where an answer begins. */
  async refresh(asStart = false) {
    if (!asStart && (this.panel.hidden || document.hidden)) return;
    try {
      const [experts, status] = await Promise.all([getJson("api/experts"), getJson("api/status")]);
      if (asStart) this.#before = experts.counts;
      this.#counts = experts.counts;
      this.#drawHeat();
      this.#drawStatus(status);
    } catch (error) {
      byId("heat-readout").textContent = error.message;
    }
  }

  #tick() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(async () => {
      const timer = this.#timer;
      await this.refresh();
      if (timer === this.#timer) this.#tick();
    }, EVERY_MS);
  }

  #open(shown) {
    this.#show(shown);
    (shown ? byId("panel-close") : byId("panel-toggle")).focus();
  }

  #show(shown) {
    this.panel.hidden = !shown;
    byId("panel-toggle").setAttribute("aria-expanded", String(shown));
    byId("main").inert = this.covers;
    byId("head").inert = this.covers;
    if (shown) this.refresh();
  }

  #drawHeat() {
    if (!this.#counts) return;
    const ofAnswer = byId("heat-answer").checked && this.#before;
    this.heat.show(ofAnswer ? difference(this.#counts, this.#before) : this.#counts);
  }

  #drawStatus(status) {
    const facts = {
      Memory: `${bytes(status.held_bytes)} of ${bytes(status.memory)}`,
      "Experts kept": count(status.expert_slots),
      Answers: `${count(status.running)} running, ${count(status.waiting)} waiting`,
    };
    const pairs = Object.entries(facts).flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]);
    byId("facts").replaceChildren(...pairs);
  }

  #loadSettings() {
    const saved = JSON.parse(localStorage.getItem(KEY) ?? "{}");
    for (const [name, value] of Object.entries(saved)) {
      const field = this.form.elements[name];
      if (field) field.value = value;
    }
  }

  #saveSettings() {
    localStorage.setItem(KEY, JSON.stringify(Object.fromEntries(new FormData(this.form))));
  }
}
