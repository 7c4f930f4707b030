// One message of the conversation as elements, brought up to date while it is written.

import { copyButton, element } from "./dom.js";
import { count, seconds, statistics } from "./format.js";
import { MarkdownView } from "./markdown.js";

/** A question, or an answer at its beginning. `state` of an answer: running, done, stopped, failed. */
export function question(content) {
  return { role: "user", content };
}

export function emptyAnswer() {
  return { role: "assistant", content: "", reasoning: "", state: "running" };
}

/** Takes a chunk of the stream into an answer that began `elapsed` seconds ago. */
export function extend(answer, chunk, elapsed) {
  const choice = chunk.choices?.[0];
  answer.reasoning += choice?.delta?.reasoning_content ?? "";
  answer.content += choice?.delta?.content ?? "";
  if (answer.reasoning && answer.content) answer.thought ??= elapsed;
  answer.finish = choice?.finish_reason ?? answer.finish;
  answer.usage = chunk.usage ?? answer.usage;
  answer.timings = chunk.timings ?? answer.timings;
}

/** `retry()` asks the last question again. */
export function viewOf(message, retry) {
  return message.role === "user" ? new QuestionView(message) : new AnswerView(message, retry);
}

class QuestionView {
  constructor(message) {
    this.element = element("article", { class: "question", "aria-label": "You" }, message.content);
  }

  update() {}
}

class AnswerView {
  #foldTouched = false;

  constructor(message, retry) {
    this.message = message;
    this.retry = retry;
    this.summary = element("summary");
    this.reasoning = new MarkdownView();
    this.fold = element("details", { class: "reasoning" }, this.summary, this.reasoning.element);
    this.summary.addEventListener("click", () => (this.#foldTouched = true));
    this.content = new MarkdownView();
    this.what = element("span", {});
    this.bar = element("progress", { "aria-label": "Prompt read" });
    this.live = element("div", { class: "live" }, element("span", { class: "dot" }), this.what, this.bar);
    this.end = element("footer");
    this.element = element(
      "article",
      { class: "answer", "aria-label": "Answer" },
      this.fold,
      this.content.element,
      this.live,
      this.end,
    );
  }

  /** `last`: only the last answer can be tried again. `progress`, `elapsed`: of one under way. */
  update(last, progress = null, elapsed = 0) {
    const { message } = this;
    const running = message.state === "running";
    this.element.setAttribute("aria-busy", String(running));
    this.#updateReasoning(running);
    this.content.update(message.content);
    this.live.hidden = !running;
    this.end.hidden = running;
    if (running) this.#updateLive(progress, elapsed);
    else this.end.replaceChildren(...this.#ending(last));
  }

  #updateReasoning(running) {
    const { reasoning, content, thought } = this.message;
    this.fold.hidden = !reasoning;
    const thinking = running && !content;
    this.summary.textContent = thinking ? "Thinking…" : `Thought${thought >= 1 ? ` for ${seconds(thought)}` : ""}`;
    // Open while it is written, folded away after, unless the reader decided.
    if (!this.#foldTouched) this.fold.open = thinking;
    this.reasoning.update(reasoning);
  }

  #updateLive(progress, elapsed) {
    const { reasoning, content } = this.message;
    const reading = progress && !reasoning && !content;
    const what = content ? "Writing" : reasoning ? "Thinking" : "Waiting for the server";
    const read = reading && `Reading the prompt: ${count(progress.done)} of ${count(progress.total)} tokens`;
    this.what.textContent = `${read || what}${elapsed >= 1 ? ` · ${seconds(elapsed)}` : ""}`;
    this.bar.hidden = !reading;
    if (!reading) return;
    this.bar.max = Math.max(1, progress.total);
    this.bar.value = progress.done;
  }

  *#ending(last) {
    const { state, error, finish, usage, timings, content } = this.message;
    const again = (label) => element("button", { type: "button", class: "quiet small", onclick: this.retry }, label);
    if (state === "failed") {
      const text = element("p", {}, element("strong", {}, "The answer failed. "), error);
      yield element("div", { class: "error", role: "alert" }, text, ...(last ? [again("Try again")] : []));
    }
    if (state === "stopped") yield element("p", { class: "note" }, "Stopped.");
    if (finish === "length") yield element("p", { class: "note" }, "Cut off at the limit of tokens; see the settings.");
    const stats = statistics(usage, timings).map((text) => element("span", {}, text));
    if (stats.length > 0) yield element("p", { class: "stats" }, ...stats);
    const actions = [];
    if (content) actions.push(copyButton("Copy", () => this.message.content));
    if (last && state !== "failed") actions.push(again("Retry"));
    yield element("div", { class: "actions" }, ...actions);
  }
}
