// The page: which conversation is shown, and what its buttons, keys and files do.
import { ApiError, askKey, get } from "./api.js";
import { requestBody, write } from "./answer.js";
import { openCode } from "./code.js";
import * as conversations from "./conversations.js";
import { $, ask, count, dialogHead, download, h } from "./dom.js";
import { attached } from "./files.js";
import { MessageView } from "./message.js";
import { openOptions, options, showTheme } from "./options.js";
import { watch } from "./plots.js";

const SAVE_EVERY = 2000; // milliseconds, while an answer is written
const store = await conversations.Store.open();
let props = { default_generation_settings: { params: {} }, modalities: {} };
let current = conversations.create();
let views = new Map(); // of the messages that are shown, by their node's id
let pending = []; // files for the next message
let writing = null; // {node, abort} while the model answers

// The conversation

async function save() {
  current.changed = Date.now();
  await store.put(current);
  await list();
}

/** Show the current branch; views of messages that are shown already stay as they are. */
function draw() {
  const nodes = conversations.branch(current);
  const kept = views;
  views = new Map(nodes.map((node) => [node.id, kept.get(node.id) ?? new MessageView(current, node, acts)]));
  $("messages").replaceChildren(...[...views.values()].map((view) => view.element));
  for (const [id, view] of views) view.update(writing?.node.id === id);
  $("empty").hidden = nodes.length > 0;
  $("title").textContent = current.title || "gguf-serve";
  document.title = current.title || "gguf-serve";
  showContext(nodes);
}

/** As `draw`, with new views of all messages. */
function redraw() {
  views.clear();
  draw();
}

function showContext(nodes) {
  const last = nodes.findLast((node) => node.stats?.prompt);
  const all = props.default_generation_settings.n_ctx;
  $("context").hidden = !last || !all;
  if (!last || !all) return;
  const used = last.stats.prompt + (last.stats.tokens ?? 0);
  $("context-meter").value = used / all;
  $("context-text").textContent = `${count(used)} of ${count(all)} tokens`;
}

/** Let the model write a message below `parent`, or go on with `node`. */
async function answer(parent, node = null) {
  if (writing) return;
  try {
    requestBody([]);
  } catch (error) {
    $("status").textContent = error.message; // a setting that cannot be sent
    return;
  }
  const conversation = current;
  node ??= conversations.add(conversation, parent, { role: "assistant", content: "" });
  conversation.leaf = node.id;
  writing = { node, abort: new AbortController() };
  showBusy();
  draw();
  follow(true);
  let saved = Date.now();
  await write(node, conversations.branch(conversation, node.parent), writing.abort.signal, () => {
    if (conversation === current) {
      views.get(node.id)?.update(true);
      showContext(conversations.branch(current));
      follow();
    }
    if (Date.now() - saved > SAVE_EVERY) {
      saved = Date.now();
      store.put(conversation);
    }
  });
  writing = null;
  showBusy();
  conversation.changed = Date.now();
  await store.put(conversation);
  await list();
  if (conversation === current) draw();
}

function showBusy() {
  $("stop").hidden = !writing;
  $("send").disabled = Boolean(writing);
  $("status").textContent = writing ? "The model is writing" : "";
}

/** Keep the end in view, unless somebody has scrolled up. */
function follow(always = false) {
  const main = $("main");
  const isNear = main.scrollHeight - main.scrollTop - main.clientHeight < 120;
  if (always || isNear) main.scrollTop = main.scrollHeight;
}

const acts = {
  async regenerate(node) {
    await answer(node.parent);
  },
  async resume(node) {
    await answer(null, node);
  },
  async edit(node, content) {
    const { role, files } = node;
    const edited = conversations.add(current, node.parent, { role, files, content });
    await save();
    if (role === "user") await answer(edited.id);
    else draw();
  },
  async choose(node, token, text) {
    const content = node.content.slice(0, token.at) + text;
    const tokens = node.tokens.slice(0, node.tokens.indexOf(token));
    const { reasoning } = node;
    const other = conversations.add(current, node.parent, {
      role: "assistant", content, reasoning,
      tokens: [...tokens, { ...token, text, p: token.others.find((each) => each.text === text).p }],
    });
    await answer(null, other);
  },
  async remove(node) {
    conversations.remove(current, node);
    await save();
    redraw();
  },
  show(node) {
    conversations.show(current, node);
    store.put(current);
    redraw();
  },
  async answerCall(node, call, content) {
    // Results follow each other, so that all of them are in the branch.
    const result = conversations.add(current, conversations.branch(current).at(-1).id, {
      role: "tool", callId: call.id, content });
    await save();
    const given = conversations.branch(current).filter((each) => each.role === "tool").map((each) => each.callId);
    if (node.calls.every((each) => given.includes(each.id))) await answer(result.id);
    else redraw();
  },
  code(node) {
    openCode(requestBody(conversations.branch(current, node.parent)));
  },
};

// The list of conversations

let listings = 0; // only the last one that was begun is shown

async function list() {
  const turn = ++listings;
  const all = await store.all();
  if (turn !== listings) return;
  const words = $("search").value.trim();
  const found = all.filter((each) => !words || conversations.matches(each, words));
  $("conversations").replaceChildren(...found.map((each) => h("li", {},
    h("a", { href: `#/c/${each.id}`, "aria-current": each.id === current.id ? "page" : null }, each.title || "Untitled"),
    h("button", { type: "button", "aria-label": `Rename ${each.title}`, onclick: () => rename(each) }, "✎"),
    h("button", { type: "button", "aria-label": `Delete ${each.title}`, onclick: () => removeConversation(each) }, "✕"))));
}

async function rename(conversation) {
  const dialog = $("data");
  const field = h("input", { id: "new-title", value: conversation.title });
  const answer = await ask(dialog, dialogHead(dialog, "Rename"), h("form", { method: "dialog" },
    h("label", { for: "new-title" }, "Title"), field, h("div", { class: "bar" }, h("button", { value: "ok", class: "main" }, "Rename"))));
  if (answer !== "ok") return;
  conversation = conversation.id === current.id ? current : conversation;
  conversation.title = field.value;
  await store.put(conversation);
  await list();
  draw();
}

async function removeConversation(conversation) {
  const dialog = $("data");
  const answer = await ask(dialog, dialogHead(dialog, "Delete this conversation?"), h("p", {}, conversation.title),
    h("form", { method: "dialog", class: "bar" }, h("button", { value: "no" }, "Keep it"), h("button", { value: "yes", class: "main" }, "Delete")));
  if (answer !== "yes") return;
  await store.delete(conversation.id);
  if (conversation.id === current.id) start();
  await list();
}

async function openData() {
  const dialog = $("data");
  const note = h("p", { role: "status" });
  const files = h("input", {
    type: "file", id: "import", accept: ".json,application/json", multiple: true,
    onchange: async () => {
      try {
        const all = (await Promise.all([...files.files].map((file) => file.text()))).flatMap(conversations.read);
        for (const each of all) await store.put(each);
        note.textContent = `${all.length} taken in.`;
      } catch (error) {
        note.textContent = error.message;
      }
      await list();
    },
  });
  await ask(dialog, dialogHead(dialog, "Conversations as files"),
    h("div", { class: "bar" },
      h("button", { type: "button", onclick: () => download(`${current.title || "conversation"}.json`, JSON.stringify(current, null, 1)) },
        "Export this one"),
      h("button", { type: "button", onclick: async () => download("conversations.json", JSON.stringify(await store.all(), null, 1)) },
        "Export all")),
    h("label", { for: "import" }, "Import"), files, note);
}

// What is shown

function start() {
  current = conversations.create();
  history.pushState(null, "", "#/");
  route();
  $("prompt").focus();
}

async function route() {
  const [, where, id] = location.hash.split("/");
  const isServer = where === "server";
  $("server").hidden = !isServer;
  $("chat").hidden = $("composer").hidden = isServer;
  document.body.classList.remove("listing");
  if (isServer) watch($("server"));
  else if (where === "c" && id !== current.id) {
    const found = await store.get(id);
    current = writing && found && current.nodes[writing.node.id] ? found : (found ?? conversations.create());
  }
  redraw();
  await list();
}

// A message

async function send() {
  const field = $("prompt");
  const content = field.value.trim();
  if (writing || (!content && !pending.length)) return;
  field.value = "";
  fit();
  const parent = current.leaf;
  const node = conversations.add(current, parent, { role: "user", content, files: pending });
  pending = [];
  drawPending();
  history.replaceState(null, "", `#/c/${current.id}`);
  await save();
  await answer(node.id);
}

function fit() {
  const field = $("prompt");
  field.style.height = "auto";
  field.style.height = `${Math.min(field.scrollHeight, innerHeight / 2)}px`;
}

async function attach(files) {
  for (const file of files) {
    $("status").textContent = `Reading ${file.name}`;
    try {
      pending.push(await attached(file, props.modalities));
      $("status").textContent = "";
    } catch (error) {
      $("status").textContent = error.message;
    }
  }
  drawPending();
}

function drawPending() {
  $("attached").replaceChildren(...pending.map((file, i) => h("li", {}, file.name,
    h("button", { type: "button", "aria-label": `Leave out ${file.name}`, onclick: () => { pending.splice(i, 1); drawPending(); } }, "✕"))));
}

$("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("prompt").addEventListener("input", fit);
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
$("prompt").addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) { event.preventDefault(); attach(event.clipboardData.files); }
});
$("files").addEventListener("change", async () => { await attach($("files").files); $("files").value = ""; });
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => { event.preventDefault(); attach(event.dataTransfer.files); });
$("stop").addEventListener("click", () => writing?.abort.abort());
$("new").addEventListener("click", start);
$("search").addEventListener("input", list);
$("show").addEventListener("click", () => document.body.classList.add("listing"));
$("hide").addEventListener("click", () => document.body.classList.remove("listing"));
$("open-server").addEventListener("click", () => { location.hash = "#/server"; });
$("open-settings").addEventListener("click", () => openOptions(props.default_generation_settings.params, askKey));
$("open-data").addEventListener("click", openData);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && writing && !document.querySelector("dialog[open]")) writing.abort.abort();
  else if (event.ctrlKey && event.key === "k") { event.preventDefault(); document.body.classList.add("listing"); $("search").focus(); }
  else if (event.ctrlKey && event.shiftKey && event.key === "O") { event.preventDefault(); start(); }
});
addEventListener("hashchange", route);

/** What the server says of itself, once it has loaded its model. */
async function greet() {
  for (;;) {
    try {
      props = await get("props");
      break;
    } catch (error) {
      $("model").textContent = error instanceof ApiError && error.status === 503 ? "The model is loading…" : error.message;
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
  const takes = ["vision", "audio"].filter((name) => props.modalities[name]).map((name) => ({ vision: "images", audio: "sounds" })[name]);
  $("model").textContent = [props.model_alias, ...(takes.length ? [`takes ${takes.join(" and ")}`] : [])].join(" · ");
}

showTheme();
$("prompt").disabled = false;  // what was typed before would have gone nowhere
await route();
await greet();
draw();
