// An answer as its tokens, coloured by their probability; a token shows what else it might have been.
import { h } from "./dom.js";

const STEPS = [0.9, 0.6, 0.3, 0.1, 0.02]; // probabilities that divide the colours
const level = (p) => STEPS.filter((step) => p < step).length;
const percent = (p) => (p >= 0.1 ? `${(100 * p).toFixed(0)} %` : `${(100 * p).toPrecision(2)} %`);
const shown = (text) => text.replaceAll(" ", "␣").replaceAll("\n", "⏎") || "(nothing)";

/** `choose(token, text)` is called when somebody takes another text in a token's place. */
export function tokenView(node, choose) {
  const chosen = h("div", { class: "alternatives", role: "group", "aria-label": "Alternatives" });
  const options = node.tokens.map((token, i) => h("span", {
    role: "option", id: `${node.id}-${i}`, class: `p${level(token.p)}`, "aria-selected": "false",
    title: percent(token.p), "aria-label": `${shown(token.text)}, ${percent(token.p)}`,
    onclick: () => select(i),
  }, token.text));
  let at = -1;

  function select(i) {
    options[at]?.setAttribute("aria-selected", "false");
    at = Math.max(0, Math.min(i, options.length - 1));
    options[at].setAttribute("aria-selected", "true");
    options[at].scrollIntoView({ block: "nearest" });
    list.setAttribute("aria-activedescendant", options[at].id);
    chosen.replaceChildren(...alternatives(node.tokens[at], choose));
  }

  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 };
  const list = h("div", {
    class: "tokens", role: "listbox", tabIndex: 0, "aria-label": "Tokens by probability",
    onkeydown: (event) => {
      if (event.key in steps) select(at + steps[event.key]);
      else if (event.key === "Enter") chosen.querySelector("button")?.focus();
      else return;
      event.preventDefault();
    },
  }, ...options);
  const legend = h("p", { class: "legend quiet" }, "Probability: ",
    ...["90 % or more", "60", "30", "10", "2", "less"].map((text, i) => h("span", { class: `p${i}` }, text)));
  return h("div", {}, list, chosen, legend);
}

function alternatives(token, choose) {
  const rows = token.others.map((other) => h("li", {},
    h("button", {
      type: "button", disabled: token.part !== "content", onclick: () => choose(token, other.text),
      title: token.part === "content" ? "Go on from here with this one" : "Only the answer goes on from a choice",
    }, shown(other.text)),
    h("meter", { min: 0, max: 1, value: other.p, "aria-label": "probability" }),
    h("span", { class: "quiet" }, percent(other.p))));
  return [h("p", {}, `Chosen: ${shown(token.text)} (${percent(token.p)}). In its place:`), h("ul", {}, ...rows)];
}
