// The view of the running server: samples of /page/state, one a second, as live plots.
import { get } from "./api.js";
import { $, bytes, count, h } from "./dom.js";

const SAMPLES = 120;
const SIZE = { width: 320, height: 80 };
const SVG = "http://www.w3.org/2000/svg";

// Each plot: title, the value of a sample (and the one before it, so many seconds earlier), its text.
const PLOTS = [
  ["Generated tokens a second", (now, then, s) => rate(now, then, s, "generated_tokens"), (v) => v.toFixed(1)],
  ["Prompt tokens a second", (now, then, s) => rate(now, then, s, "prompt_tokens"), (v) => v.toFixed(0)],
  ["Requests running and waiting", (now) => now.running + now.waiting, (v, now) =>
    `${now.running} of ${now.n_slots} slots, ${now.waiting} waiting`],
  ["KV cache in use", (now) => now.pages.used / now.pages.all, (v, now) =>
    `${(100 * v).toFixed(0)} %; ${count(now.pages.cached * now.pages.size)} tokens kept for later`],
  ["Memory of the process", (now) => now.resident_bytes, (v) => bytes(v)],
];
const FULL = { "KV cache in use": 1 };

// Totals count when a request ends; what slots have written until then comes on top.
function total(state, name) {
  const running = state.slots.filter((slot) => slot.busy);
  const more = name === "generated_tokens" ? running.map((slot) => slot.generated)
    : running.map((slot) => Math.max(0, slot.processed - slot.cached));
  return state.totals[name] + (name === "generated_tokens" ? more.reduce((a, b) => a + b, 0) : 0);
}

const rate = (now, then, seconds, name) =>
  then && seconds > 0 ? Math.max(0, (total(now, name) - total(then, name)) / seconds) : 0;

class Plot {
  constructor(title, value, text) {
    Object.assign(this, { title, value, text, values: [] });
    this.line = document.createElementNS(SVG, "polyline");
    this.svg = document.createElementNS(SVG, "svg");
    this.svg.setAttribute("viewBox", `0 0 ${SIZE.width} ${SIZE.height}`);
    this.svg.setAttribute("preserveAspectRatio", "none");
    this.svg.setAttribute("role", "img");
    this.svg.append(this.line);
    this.shown = h("span", { class: "number" });
    this.element = h("figure", {}, h("figcaption", {}, title, " ", this.shown), this.svg);
  }

  add(now, then, seconds) {
    const value = this.value(now, then, seconds);
    this.values = [...this.values, value].slice(-SAMPLES);
    const most = FULL[this.title] ?? (Math.max(...this.values) || 1);
    const step = SIZE.width / (SAMPLES - 1);
    const start = SAMPLES - this.values.length;
    this.line.setAttribute("points", this.values.map((each, i) =>
      `${((start + i) * step).toFixed(1)},${(SIZE.height - 2 - (SIZE.height - 6) * each / most).toFixed(1)}`).join(" "));
    this.shown.textContent = this.text(value, now);
    this.svg.setAttribute("aria-label", `${this.title}: ${this.shown.textContent}`);
  }
}

/** Shows the server in `section` until it is hidden again. */
export function watch(section) {
  const plots = PLOTS.map((plot) => new Plot(...plot));
  const facts = h("dl", {});
  const rows = h("tbody");
  const fault = h("p", { class: "fault", role: "alert" });
  section.replaceChildren(h("h2", {}, "The running server"), fault, facts,
    h("div", { class: "plots" }, ...plots.map((plot) => plot.element)),
    h("div", { class: "scroll", tabIndex: 0, role: "region", "aria-label": "Slots" },
      h("table", {}, h("caption", {}, "Slots"),
        h("thead", {}, h("tr", {}, ...["Slot", "State", "Prompt", "Cached", "Generated"].map((name) =>
          h("th", { scope: "col" }, name)))), rows)));
  let then = null;
  let at = 0;
  async function sample() {
    if (section.hidden) return;
    try {
      const now = await get("page/state");
      const seconds = (performance.now() - at) / 1000;
      for (const plot of plots) plot.add(now, then, seconds);
      facts.replaceChildren(...factsOf(now));
      rows.replaceChildren(...now.slots.map(slotRow));
      [then, at] = [now, performance.now()];
      fault.textContent = "";
    } catch (error) {
      fault.textContent = error.message;
    }
    setTimeout(sample, 1000);
  }
  sample();
}

function factsOf(state) {
  const all = [
    ["Model", `${state.model} (${state.architecture}, ${count(state.parameters)} parameters, ${state.file_type})`],
    ["Device", `${state.device} (${state.driver})`],
    ["Context", `${count(state.n_ctx)} tokens in each of ${state.n_slots} slots`],
    ["Memory", `weights ${bytes(state.weight_bytes)}, KV cache ${bytes(state.kv_bytes)}`],
    ["Since the start", `${count(state.totals.prompt_tokens)} prompt tokens computed, ${
      count(state.totals.cached_tokens)} found in the cache, ${count(state.totals.generated_tokens)} generated`],
  ];
  return all.flatMap(([name, text]) => [h("dt", {}, name), h("dd", {}, text)]);
}

const slotRow = (slot) => h("tr", {}, h("th", { scope: "row" }, String(slot.id)),
  ...[slot.busy ? (slot.generated ? "generates" : "reads the prompt") : "free",
    ...[slot.prompt, slot.cached, slot.generated].map(count)].map((text) => h("td", {}, text)));
