// How a message looks, and what can be done with it.
import { versions } from "./conversations.js";
import { count, h } from "./dom.js";
import { Rendered } from "./rendered.js";
import { tokenView } from "./tokens.js";

const WHO = { user: "You", assistant: "Model", tool: "Result of a tool", system: "System" };
const ENDS = { length: "The limit of tokens was reached.", stopped: "Stopped." };

/**
 * A message of a conversation. `acts` are what its buttons do: regenerate, resume, edit, remove, choose,
 * code, show, answerCall.
 */
export class MessageView {
  constructor(conversation, node, acts) {
    Object.assign(this, { conversation, node, acts });
    this.reasoning = new Rendered("reasoned");
    this.thoughts = h("details", { class: "reasoning", hidden: true }, h("summary", {}, "Reasoning"), this.reasoning.element);
    this.content = new Rendered("said");
    this.body = h("div", { class: "body" });
    this.calls = h("div", {});
    this.tokens = h("div", { hidden: true });
    this.note = h("p", { class: "note", role: "status" });
    this.stats = h("p", { class: "stats quiet" });
    this.tools = h("div", { class: "bar tools" });
    this.element = h("li", { class: `message ${node.role}`, "aria-label": WHO[node.role] },
      h("h2", { class: "who" }, WHO[node.role]), files(node), this.thoughts, this.body, this.tokens, this.calls,
      this.note, this.stats, this.tools);
    this.body.append(this.content.element);
    this.update(false);
  }

  /** Show what the node has now. */
  update(busy) {
    const { node } = this;
    if (node.role === "user" || node.role === "tool") this.plainText();
    else this.content.set(node.content, busy);
    if (node.reasoning) {
      if (this.thoughts.hidden) this.thoughts.open = busy;
      this.thoughts.hidden = false;
      if (this.thoughts.open && node.content && busy && !this.folded) {
        this.thoughts.open = false; // it has begun to answer
        this.folded = true;
      }
      this.reasoning.set(node.reasoning, busy);
    }
    this.element.setAttribute("aria-busy", String(busy));
    this.note.textContent = noteOf(node, busy);
    this.note.classList.toggle("fault", Boolean(node.error));
    this.stats.textContent = node.role === "assistant" ? statsOf(node) : "";
    if (!busy || !this.calls.childElementCount) this.calls.replaceChildren(...(node.calls ?? []).map((call) => this.call(call, busy)));
    this.tools.replaceChildren(...(busy ? [] : this.buttons()));
  }

  plainText() {
    this.content.element.replaceChildren(h("p", { class: "plain" }, this.node.content));
  }

  buttons() {
    const { node, acts } = this;
    const button = (text, onclick, more = {}) => h("button", { type: "button", onclick, ...more }, text);
    const all = [...this.versionButtons(), button("Copy", () => navigator.clipboard.writeText(node.content))];
    if (node.role !== "tool") all.push(button("Edit", () => this.edit()));
    if (node.role === "assistant") {
      all.push(button("Regenerate", () => acts.regenerate(node)));
      if (node.content && !node.calls?.length) all.push(button("Continue", () => acts.resume(node)));
      if (node.tokens?.length) {
        all.push(button("Tokens", () => this.toggleTokens(), { "aria-pressed": String(!this.tokens.hidden) }));
      }
      all.push(button("Code", () => acts.code(node)));
    }
    all.push(button("Delete", () => acts.remove(node)));
    return all;
  }

  versionButtons() {
    const all = versions(this.conversation, this.node);
    if (all.length < 2) return [];
    const at = all.indexOf(this.node);
    const step = (by, text, label) => h("button", {
      type: "button", disabled: !all[at + by], "aria-label": label, onclick: () => this.acts.show(all[at + by]),
    }, text);
    return [step(-1, "‹", "The version before"), h("span", { class: "quiet" }, `${at + 1} of ${all.length}`),
      step(1, "›", "The next version")];
  }

  toggleTokens() {
    const shown = this.tokens.hidden;
    this.tokens.hidden = !shown;
    this.body.hidden = shown;
    this.tokens.replaceChildren(...(shown ? [tokenView(this.node, (token, text) => this.acts.choose(this.node, token, text))] : []));
    this.update(false);
  }

  edit() {
    const field = h("textarea", { value: this.node.content, "aria-label": "The new text", rows: 4 });
    const form = h("form", {
      onsubmit: (event) => {
        event.preventDefault();
        this.acts.edit(this.node, field.value);
      },
    }, field, h("div", { class: "bar" },
      h("button", { type: "button", onclick: () => this.acts.show(this.node) }, "Cancel"),
      h("button", { class: "main" }, this.node.role === "user" ? "Send" : "Keep")));
    this.body.replaceChildren(form);
    this.tools.replaceChildren();
    field.focus();
  }

  /** A tool call, and a field for its result where nobody has given it yet. */
  call(call, busy) {
    let given = call.arguments;
    try {
      given = JSON.stringify(JSON.parse(call.arguments), null, 2);
    } catch { /* it is not whole yet, or the model has written no JSON */ }
    const answered = Object.values(this.conversation.nodes).some((node) => node.role === "tool" && node.callId === call.id);
    const field = h("textarea", { rows: 2, "aria-label": `Result of ${call.name}` });
    const form = h("form", {
      onsubmit: (event) => {
        event.preventDefault();
        this.acts.answerCall(this.node, call, field.value);
      },
    }, field, h("button", {}, "Give the result"));
    return h("details", { class: "call", open: true }, h("summary", {}, `Calls ${call.name}`),
      h("pre", { tabIndex: 0, "aria-label": "Arguments" }, given), !busy && !answered && form);
  }
}

function files(node) {
  if (!node.files?.length) return null;
  return h("ul", { class: "files" }, ...node.files.map((file) => h("li", {}, fileView(file))));
}

export function fileView({ name, kind, data, format }) {
  if (kind === "image") return h("img", { src: data, alt: name });
  if (kind === "audio") return h("audio", { controls: true, src: `data:audio/${format};base64,${data}`, "aria-label": name });
  return h("details", {}, h("summary", {}, `${name} (${count(data.length)} characters)`), h("pre", { tabIndex: 0 }, data));
}

function noteOf(node, busy) {
  if (node.error) return node.error;
  if (node.progress) {
    const { processed, total, cache } = node.progress;
    return `Reading the prompt: ${count(processed)} of ${count(total)} tokens${cache ? `, ${count(cache)} of them cached` : ""}`;
  }
  if (busy && !node.content && !node.reasoning && !node.calls?.length) return "…";
  return (!busy && ENDS[node.finish]) || "";
}

function statsOf({ stats }) {
  if (!stats?.tokens) return "";
  const parts = [`${count(stats.tokens)} tokens`];
  if (stats.perSecond) parts.push(`${stats.perSecond.toFixed(1)} tokens/s`);
  if (stats.first) parts.push(`first after ${(stats.first / 1000).toFixed(2)} s`);
  if (stats.prompt) parts.push(`prompt ${count(stats.prompt)} tokens, ${count(stats.cached ?? 0)} cached`);
  return parts.join(" · ");
}
