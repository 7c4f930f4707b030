// The server's interfaces that the page uses. Addresses are relative: a proxy may add a prefix.

const KEY = "flashmoe.key";
const AWAY = "The server cannot be reached. Is flashmoe serve still running?";
const CUT = "The connection ended before the answer was complete.";

/** A failure with words for the user. `status` is that of HTTP, 0 where there was no answer. */
export class ApiError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.name = "ApiError";
    this.status = status;
  }
}

export function setKey(key) {
  sessionStorage.setItem(KEY, key);
}

export async function getJson(path) {
  return parsed(await (await request(path)).text());
}

/**
 * Streams a chat completion: gives {progress: {done, total}} and the chunks of OpenAI's interface.
 *
 * Throws ApiError where the server reports a failure or goes away.
 */
export async function* streamChat(body, signal) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  for await (const event of events(response.body)) {
    const progress = /^: prefill (\d+)\/(\d+)$/.exec(event);
    if (progress) yield { progress: { done: Number(progress[1]), total: Number(progress[2]) } };
    if (!event.startsWith("data: ")) continue;
    if (event === "data: [DONE]") return;
    const chunk = parsed(event.slice(6));
    if (chunk.error) throw new ApiError(chunk.error.message ?? "The server failed.", response.status);
    yield chunk;
  }
  throw new ApiError(CUT);
}

/** Server-sent events as text, as this server writes them: of one line each. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch(lost(CUT));
      if (done) return;
      const whole = (rest + value).split("\n\n");
      rest = whole.pop();
      yield* whole;
    }
  } finally {
    reader.cancel().catch(() => {}); // It is over or broken; nobody is left to tell.
  }
}

async function request(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  const response = await fetch(path, { ...options, headers, cache: "no-store" }).catch(lost(AWAY));
  if (response.ok) return response;
  const text = await response.text().catch(lost(CUT));
  const wait = Number(response.headers.get("Retry-After"));
  const advice = wait > 0 ? ` Try again in ${wait} s.` : "";
  throw new ApiError(sentence(messageOf(text) ?? `the server answered ${response.status}`) + advice, response.status);
}

function messageOf(text) {
  try {
    return JSON.parse(text).error.message;
  } catch {
    return null; // Not of this server: some proxy's.
  }
}

function sentence(text) {
  return text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

/** What to do with a network error, unless the user wanted it. */
function lost(text) {
  return (error) => {
    throw error.name === "AbortError" ? error : new ApiError(text);
  };
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new ApiError(`The server sent what is not JSON: ${text.slice(0, 200)}`);
  }
}
