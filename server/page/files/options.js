// What a person may set: sampling, the system prompt, a schema, tools. Only what differs from the
// server's defaults is sent.
import { $, ask, dialogHead, h } from "./dom.js";

const KEPT = "gguf-serve options";

// Fields of a request with a number, by name; defaults come from /props.
export const NUMBERS = [
  ["temperature", "Temperature", "How freely tokens are drawn; 0 takes the likeliest"],
  ["max_tokens", "Most tokens", "of an answer; -1: no limit"],
  ["seed", "Seed", "The same seed gives the same answer; -1: a new one each time"],
  ["top_k", "Top k", "Only the k likeliest tokens; 0: all"],
  ["top_p", "Top p", "Only the likeliest tokens that have this probability together"],
  ["min_p", "Min p", "Only tokens with at least this share of the likeliest one's probability"],
  ["typical_p", "Typical p", "Locally typical sampling; 1: off"],
  ["top_n_sigma", "Top n sigma", "Only logits within n deviations of the highest; -1: off"],
  ["xtc_probability", "XTC probability", "How often the likeliest choices are left out"],
  ["xtc_threshold", "XTC threshold", "Probability from which on they count as such"],
  ["dynatemp_range", "Dynamic temperature", "The temperature varies by so much with the entropy"],
  ["dynatemp_exponent", "Its exponent", ""],
  ["repeat_penalty", "Repeat penalty", "1: off"],
  ["repeat_last_n", "Repeat last n", "Tokens that the penalties look at; -1: the context"],
  ["presence_penalty", "Presence penalty", ""],
  ["frequency_penalty", "Frequency penalty", ""],
  ["dry_multiplier", "DRY multiplier", "Against repeated sequences; 0: off"],
  ["dry_base", "DRY base", ""],
  ["dry_allowed_length", "DRY allowed length", ""],
  ["dry_penalty_last_n", "DRY last n", ""],
  ["mirostat", "Mirostat", "0: off, 1, 2"],
  ["mirostat_tau", "Mirostat tau", ""],
  ["mirostat_eta", "Mirostat eta", ""],
  ["adaptive_target", "Adaptive target", "Probability that drawn tokens are steered to; -1: off"],
  ["adaptive_decay", "Its decay", ""],
  ["min_keep", "Min keep", "Tokens that every filter leaves"],
];

const DEFAULT = { numbers: {}, system: "", stop: "", samplers: "", schema: "", tools: "", theme: "auto",
  tokens: true, thinking: "default", extra: "" };

export const options = { ...DEFAULT, ...JSON.parse(localStorage.getItem(KEPT) ?? "{}") };

export function showTheme() {
  document.documentElement.dataset.theme = options.theme;
}

/** The fields of a request that follow from the options; Error names the option that is wrong. */
export function requestFields() {
  const fields = { ...options.numbers };
  if (options.stop) fields.stop = options.stop.split("\n").filter(Boolean);
  if (options.samplers.trim()) fields.samplers = options.samplers.split(/[\s,;]+/).filter(Boolean);
  if (options.tools.trim()) fields.tools = json(options.tools, "Tools");
  if (options.schema.trim()) {
    const schema = json(options.schema, "JSON schema");
    fields.response_format = { type: "json_schema", json_schema: { name: "answer", schema } };
  }
  if (options.thinking !== "default") {
    fields.chat_template_kwargs = { enable_thinking: options.thinking === "on" };
  }
  return { ...fields, ...(options.extra.trim() ? json(options.extra, "Further fields") : {}) };
}

function json(text, name) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`${name} is not JSON: ${error.message}`);
  }
}

/** The dialog; `defaults` are the server's sampling parameters, none while it loads. */
export async function openOptions(defaults, askKey) {
  const dialog = $("settings");
  const fault = h("p", { class: "fault", role: "alert" });
  const numbers = NUMBERS.map(([name, label, hint]) => {
    const id = `option-${name}`;
    const field = h("input", { id, name, type: "number", step: "any",
      placeholder: String(defaults[name] ?? ""), value: options.numbers[name] ?? "", title: hint });
    return h("div", {}, h("label", { for: id, title: hint }, label), field);
  });
  const area = (name, label, rows, hint = "") => {
    const id = `option-${name}`;
    return h("div", {}, h("label", { for: id }, label),
      h("textarea", { id, name, rows, value: options[name], placeholder: hint, spellcheck: name === "system" }));
  };
  const choice = (name, label, choices) => {
    const id = `option-${name}`;
    const field = h("select", { id, name }, ...choices.map(([value, text]) => h("option", { value }, text)));
    field.value = options[name];
    return h("div", {}, h("label", { for: id }, label), field);
  };
  const tokens = h("input", { id: "option-tokens", type: "checkbox", checked: options.tokens });
  const form = h("form", { method: "dialog" },
    area("system", "System prompt", 4),
    h("fieldset", {}, h("legend", {}, "Sampling: empty fields have the server's defaults"),
      h("div", { class: "grid" }, ...numbers),
      area("samplers", "Samplers, in their order", 1, (defaults.samplers ?? []).join(" ")),
      area("stop", "Stop at these texts, one a line", 2)),
    area("schema", "JSON schema of the answer", 3, '{"type": "object", "properties": {}}'),
    area("tools", "Tools", 3, '[{"type": "function", "function": {"name": "…", "parameters": {}}}]'),
    area("extra", "Further fields of the request, as JSON", 2, '{"reasoning_effort": "low"}'),
    h("div", { class: "grid" },
      choice("thinking", "Thinking", [["default", "as the model does"], ["on", "on"], ["off", "off"]]),
      choice("theme", "Colours", [["auto", "as the system"], ["light", "light"], ["dark", "dark"]])),
    h("div", { class: "check" }, tokens,
      h("label", { for: "option-tokens" }, "Keep each token's probability and its alternatives")),
    fault,
    h("div", { class: "bar" },
      h("button", { type: "button", onclick: () => askKey() }, "API key…"),
      h("button", { type: "button", onclick: () => reset(form) }, "Defaults"),
      h("button", { class: "main", value: "ok" }, "Save")));
  form.addEventListener("submit", (event) => {
    const before = { ...options };
    take(form, tokens.checked);
    try {
      requestFields();
    } catch (error) {
      Object.assign(options, before);
      fault.textContent = error.message;
      event.preventDefault();
    }
  });
  if ((await ask(dialog, dialogHead(dialog, "Settings"), form)) !== "ok") return;
  localStorage.setItem(KEPT, JSON.stringify(options));
  showTheme();
}

function take(form, tokens) {
  options.numbers = {};
  for (const [name] of NUMBERS) {
    const field = form.elements[name];
    if (field && field.value !== "") options.numbers[name] = Number(field.value);
  }
  for (const name of ["system", "stop", "samplers", "schema", "tools", "thinking", "theme", "extra"]) {
    options[name] = form.elements[name].value;
  }
  options.tokens = tokens;
}

function reset(form) {
  for (const field of form.elements) {
    if (field.name in DEFAULT) field.value = DEFAULT[field.name];
    else if (field.type === "number") field.value = "";
    else if (field.type === "checkbox") field.checked = DEFAULT.tokens;
  }
}
