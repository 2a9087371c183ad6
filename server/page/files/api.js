// The server's API: JSON, and streams of server-sent events.
import { $, ask, dialogHead, h } from "./dom.js";

const base = new URL(".", location.href);
const KEY = "gguf-serve key";

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** Where clients find the API; with the page's own prefix, if it has one. */
export const address = (path = "") => new URL(path, base).href;
export const hasKey = () => Boolean(localStorage.getItem(KEY));

/** The answer to a request, after asking for a key if that is what is wrong; ApiError if it fails. */
async function request(path, options) {
  for (;;) {
    const key = localStorage.getItem(KEY);
    const headers = { ...options.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
    let response;
    try {
      response = await fetch(address(path), { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("The server does not answer. Is it still running?", 0);
    }
    if (response.ok) return response;
    if (response.status === 401 && (await wantKey(Boolean(key)))) continue;
    throw new ApiError(await reason(response), response.status);
  }
}

async function reason(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error.message;
  } catch {
    return text || `${response.status} ${response.statusText}`;
  }
}

let asking = null; // one dialog, however many requests want a key

function wantKey(wasWrong) {
  asking ??= askKey(wasWrong).finally(() => { asking = null; });
  return asking;
}

/** Ask for a key; whether there is one now. */
export async function askKey(wasWrong = false) {
  const field = h("input", { type: "password", autocomplete: "off", id: "key-field", value: "" });
  const dialog = $("key");
  const answer = await ask(dialog, dialogHead(dialog, "API key"),
    h("form", { method: "dialog" },
      h("p", {}, wasWrong ? "This server does not know the key." : "This server wants a key."),
      h("label", { for: "key-field" }, "Key (kept in this browser)"), field,
      h("div", { class: "bar" },
        h("button", { type: "button", onclick: () => dialog.close() }, "Cancel"),
        h("button", { value: "ok", class: "main" }, "Use it"))));
  if (answer !== "ok") return false;
  if (field.value) localStorage.setItem(KEY, field.value);
  else localStorage.removeItem(KEY);
  return Boolean(field.value);
}

export const get = async (path) => (await request(path, {})).json();

const posted = (body, signal) => ({
  method: "POST", signal, body: JSON.stringify(body), headers: { "content-type": "application/json" },
});

export const post = async (path, body, signal) => (await request(path, posted(body, signal))).json();

/** Post a file as it is. */
export const postFile = async (path, file) =>
  (await request(path, { method: "POST", body: file })).json();

/** The events of a stream, each parsed; ends at `[DONE]`, throws what the server says went wrong. */
export async function* stream(path, body, signal) {
  const response = await request(path, posted({ ...body, stream: true }, signal));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new ApiError("The answer broke off: the server has ended, or the network.", 0);
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ")) continue; // a ping
      const data = event.slice("data: ".length);
      if (data === "[DONE]") return;
      const parsed = JSON.parse(data);
      if (parsed.error) throw new ApiError(parsed.error.message, parsed.error.code);
      yield parsed;
    }
  }
}
