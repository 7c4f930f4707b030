// The chat page: sends, streams, stops, tries again.

import { ApiError, getJson, setKey, streamChat } from "./api.js";
import { byId, element } from "./dom.js";
import { emptyAnswer, extend, question, viewOf } from "./message.js";
import { Panel } from "./panel.js";

const SUGGESTIONS = [
  "What is a mixture of experts?",
  "Give me a recipe for pancakes.",
  "Tell me a short story about a fox.",
];
const KEPT = "flashmoe.conversation"; // Until the tab is closed.

const log = byId("log");
const scroller = byId("scroller");
const prompt = byId("prompt");
const panel = new Panel();
let messages = JSON.parse(sessionStorage.getItem(KEPT) ?? "[]");
let views = [];
let model = "";
let controller = null; // Of the answer being written; null when none is.
let atEnd = true;

// ------------------------------------------------------------------ the conversation

function show() {
  log.replaceChildren();
  const all = messages;
  messages = [];
  views = [];
  all.forEach(append);
  byId("welcome").hidden = all.length > 0;
  scrollToEnd();
}

function append(message) {
  const view = viewOf(message, retry);
  const before = views.at(-1);
  messages.push(message);
  views.push(view);
  log.append(view.element);
  before?.update(false);
  view.update(true);
  byId("welcome").hidden = true;
  return view;
}

/** For the next load of this page, where an answer under way counts as stopped. */
function keep() {
  const kept = messages.map((one) => (one.state === "running" ? { ...one, state: "stopped" } : one));
  sessionStorage.setItem(KEPT, JSON.stringify(kept));
}

function send(text) {
  if (!text.trim() || controller || !panel.check()) return;
  prompt.value = "";
  fitPrompt();
  append(question(text.trim()));
  answer();
}

function retry() {
  if (controller || !panel.check()) return;
  if (messages.at(-1)?.role === "assistant") {
    messages.pop();
    views.pop().element.remove();
  }
  answer();
}

function requestBody() {
  const { system, thinking, ...sampling } = panel.settings;
  const said = messages.filter(({ content }) => content).map(({ role, content }) => ({ role, content }));
  return {
    model,
    messages: [...(system ? [{ role: "system", content: system }] : []), ...said],
    ...(thinking && { enable_thinking: thinking === "on" }),
    ...sampling,
  };
}

async function answer() {
  const body = requestBody();
  const message = emptyAnswer();
  const view = append(message);
  const abort = new AbortController();
  const started = performance.now();
  const elapsed = () => (performance.now() - started) / 1000;
  let progress = null;
  const draw = painter(() => {
    view.update(messages.at(-1) === message, progress, elapsed());
    if (atEnd && view.element.isConnected) scrollToEnd();
  });
  const clock = setInterval(draw.soon, 1000);
  setRunning(abort);
  say("Waiting for the answer");
  scrollToEnd();
  try {
    // A busy server counts no experts until its step ends; the question need not wait for that.
    await Promise.race([panel.begin(), new Promise((go) => setTimeout(go, 300))]);
    for await (const chunk of streamChat(body, abort.signal)) {
      progress = chunk.progress ?? progress;
      extend(message, chunk, elapsed());
      draw.soon();
    }
    message.state = "done";
    say("The answer is complete");
  } catch (error) {
    fail(message, error, abort.signal.aborted);
  }
  clearInterval(clock);
  // A new chat may have begun meanwhile; this answer is then nobody's.
  if (controller === abort) {
    setRunning(null);
    keep();
    panel.end();
  }
  draw.now();
}

function fail(message, error, stopped) {
  message.state = stopped ? "stopped" : "failed";
  message.error = error.message;
  say(stopped ? "Stopped" : "The answer failed");
  if (error.status === 401) askForKey();
  if (!stopped && !(error instanceof ApiError)) console.error(error);
}

/** Draws at most once a frame; `now` draws at once, also where the page is not shown. */
function painter(paint) {
  let frame = 0;
  const now = () => {
    cancelAnimationFrame(frame);
    frame = 0;
    paint();
  };
  return { now, soon: () => (frame ||= requestAnimationFrame(now)) };
}

function stop() {
  controller?.abort();
}

function newChat() {
  stop();
  setRunning(null);
  panel.end();
  messages = [];
  keep();
  show();
  prompt.focus();
}

function setRunning(abort) {
  const focused = [byId("send"), byId("stop")].includes(document.activeElement);
  controller = abort;
  byId("send").hidden = abort !== null;
  byId("stop").hidden = abort === null;
  if (focused) prompt.focus();
}

// ------------------------------------------------------------------ the server

async function connect() {
  try {
    const models = await getJson("v1/models");
    model = models.data[0].id;
    byId("model").textContent = model;
    notice("");
    panel.refresh();
    return true;
  } catch (error) {
    if (error.status === 401) askForKey();
    else notice(error.message);
    return false;
  }
}

function askForKey() {
  if (!byId("key-dialog").open) byId("key-dialog").showModal();
}

async function useKey() {
  setKey(byId("key").value.trim());
  byId("key").value = "";
  byId("key-dialog").close();
  if ((await connect()) && messages.at(-1)?.state === "failed") retry();
}

// ------------------------------------------------------------------ what is said and shown

function notice(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = !text;
}

function say(text) {
  byId("status").textContent = text;
}

function scrollToEnd() {
  scroller.scrollTop = scroller.scrollHeight;
}

function fitPrompt() {
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
}

function onSubmit(form, action) {
  byId(form).addEventListener("submit", (event) => {
    event.preventDefault();
    action();
  });
}

// ------------------------------------------------------------------ controls

onSubmit("composer", () => send(prompt.value));
onSubmit("settings", () => {});
onSubmit("key-form", useKey);
byId("stop").addEventListener("click", stop);
byId("new-chat").addEventListener("click", newChat);
byId("key-cancel").addEventListener("click", () => byId("key-dialog").close());
byId("to-end").addEventListener("click", scrollToEnd);
prompt.addEventListener("input", fitPrompt);
prompt.addEventListener("keydown", (event) => {
  // Enter that chooses a word of an input method sends nothing.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send(prompt.value);
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || byId("key-dialog").open) return;
  if (panel.covers) panel.close();
  else stop();
});
scroller.addEventListener("scroll", () => {
  atEnd = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 48;
  byId("to-end").hidden = atEnd;
});
byId("suggestions").append(
  ...SUGGESTIONS.map((text) => element("button", { type: "button", onclick: () => send(text) }, text)),
);
addEventListener("pagehide", keep);

show();
connect();
prompt.focus();
