// Markdown in an element. The server renders it (see markdown.py), to HTML that is safe to take in.
import { post } from "./api.js";
import { h } from "./dom.js";

const LEAST = 150; // milliseconds between two renderings of a text that grows
const SHARE = 5; // and at least so many times what the last one took

/** An element that shows a text, as plain text until it is rendered. */
export class Rendered {
  constructor(name) {
    this.element = h("div", { class: `text ${name}` });
    this.text = this.done = "";
    this.busy = this.grows = false;
    this.wait = LEAST;
    this.wake = () => {};
  }

  /** `grows`: more of it is coming. All of it is rendered as soon as it is there, however long the
   *  rendering before took. */
  set(text, grows) {
    const isNew = text !== this.text;
    Object.assign(this, { text, grows });
    if (!grows) this.wake();
    if (!isNew) return;
    if (!this.done) this.plain();
    this.render();
  }

  plain() {
    this.element.replaceChildren(h("p", { class: "plain" }, this.text));
  }

  async render() {
    if (this.busy) return;
    this.setBusy(true);
    while (this.done !== this.text) {
      const text = this.text;
      const began = performance.now();
      try {
        const { html } = await post("page/html", { text });
        this.element.innerHTML = html;
        for (const code of this.element.querySelectorAll("pre > code")) decorate(code);
      } catch {
        this.plain(); // too long, or the server has gone: the text itself is what counts
      }
      this.done = text;
      this.wait = Math.max(LEAST, SHARE * (performance.now() - began));
      if (this.done !== this.text && this.grows) await this.pause();
    }
    this.setBusy(false);
  }

  setBusy(busy) {
    this.busy = busy;
    this.element.setAttribute("aria-busy", String(busy)); // what is shown is not all of it yet
  }

  pause() {
    return new Promise((resolve) => {
      this.wake = resolve;
      setTimeout(resolve, this.wait);
    });
  }
}

/** A head for a block of code: its language, and a button that copies it. */
function decorate(code) {
  const language = /language-([\w+#.-]+)/.exec(code.className)?.[1] ?? "";
  code.parentElement.tabIndex = 0; // wide code is scrolled, by keys too
  code.parentElement.before(h("div", { class: "code-head" }, h("span", {}, language),
    h("button", { type: "button", onclick: () => navigator.clipboard.writeText(code.textContent) }, "Copy")));
}
