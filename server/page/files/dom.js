// Elements in one line each.

/** The element with this id. */
export const $ = (id) => document.getElementById(id);

/**
 * A new element. Properties that begin with "on" are listeners, those with a dash or "role" are
 * attributes, `class` is its class; null and false children are left out.
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name.includes("-") || name === "role" || name === "for") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== false && child !== undefined));
  return element;
}

/** Number of tokens, bytes and so on, as people read it. */
export const count = (n) => n.toLocaleString("en");

export function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  for (; n >= 1024 && at < units.length - 1; at++) n /= 1024;
  return `${n.toFixed(n < 10 && at ? 1 : 0)} ${units[at]}`;
}

/** Have the browser save a text as a file. */
export function download(name, text, type = "application/json") {
  const url = URL.createObjectURL(new Blob([text], { type }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

/** Fill a dialog, show it, and resolve with its return value. */
export function ask(dialog, ...content) {
  dialog.replaceChildren(...content);
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true });
  });
}

/** The head of a dialog: its title, and a button that closes it. */
export function dialogHead(dialog, title) {
  return h("div", { class: "bar" },
    h("h2", { id: `${dialog.id}-title` }, title),
    h("button", { type: "button", "aria-label": "Close", onclick: () => dialog.close() }, "✕"));
}
