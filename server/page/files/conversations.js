// Conversations: trees of messages, kept in this browser (IndexedDB).
//
// A conversation is {id, title, created, changed, leaf, nodes}. A node is a message: {id, parent,
// role, content, ...}; its siblings are other versions of it. `leaf` is the end of the branch that
// is shown.

const NAME = "gguf-serve";
const STORE = "conversations";

export const newId = () => crypto.randomUUID?.() ?? Array.from(
  crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

export const create = () => (
  { id: newId(), title: "", created: Date.now(), changed: Date.now(), leaf: null, nodes: {} });

/** Add a message below `parent`, and show its branch. */
export function add(conversation, parent, message) {
  const node = { id: newId(), parent, created: Date.now(), ...message };
  conversation.nodes[node.id] = node;
  conversation.leaf = node.id;
  if (!conversation.title && node.role === "user") conversation.title = titleOf(node);
  return node;
}

function titleOf(node) {
  const line = node.content.trim().split("\n")[0] || node.files?.[0]?.name || "";
  return line.length > 60 ? `${line.slice(0, 59)}…` : line;
}

/** The messages that are shown, from the first to the leaf. */
export function branch(conversation, leaf = conversation.leaf) {
  const found = [];
  for (let node = conversation.nodes[leaf]; node; node = conversation.nodes[node.parent]) found.push(node);
  return found.reverse();
}

export const children = (conversation, id) => Object.values(conversation.nodes)
  .filter((node) => node.parent === id).sort((a, b) => a.created - b.created);

/** The versions of a message, the first one first. */
export const versions = (conversation, node) => children(conversation, node.parent);

/** Show the branch through `node` that was written last. */
export function show(conversation, node) {
  let last = node;
  for (let below; (below = children(conversation, last.id)).length;) last = below.at(-1);
  conversation.leaf = last.id;
}

/** Remove a message and all that follow it; another version of it is shown, if there is one. */
export function remove(conversation, node) {
  for (const below of children(conversation, node.id)) remove(conversation, below);
  delete conversation.nodes[node.id];
  const others = versions(conversation, node);
  if (others.length) show(conversation, others.at(-1));
  else conversation.leaf = node.parent;
}

/** Whether all of the words occur in it. */
export function matches(conversation, words) {
  const text = [conversation.title, ...Object.values(conversation.nodes).map((node) => node.content)]
    .join("\n").toLowerCase();
  return words.toLowerCase().split(/\s+/).every((word) => text.includes(word));
}

/** What a file of exported conversations has; Error if it has none. */
export function read(text) {
  const data = JSON.parse(text);
  const all = Array.isArray(data) ? data : [data];
  for (const each of all) {
    const whole = typeof each?.id === "string" && each.nodes && typeof each.nodes === "object"
      && Object.values(each.nodes).every((node) => typeof node.content === "string" && node.role);
    if (!whole) throw new Error("This file has no conversations of this page.");
  }
  return all;
}

const settled = (request) => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

/** The browser's store. Where it has none (private windows of some), memory until the page closes. */
export class Store {
  static async open() {
    const store = new Store();
    try {
      const request = indexedDB.open(NAME, 1);
      request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
      store.database = await settled(request);
    } catch {
      store.memory = new Map();
    }
    return store;
  }

  _at(mode) {
    return this.database.transaction(STORE, mode).objectStore(STORE);
  }

  /** All conversations, the last changed first. */
  async all() {
    const found = this.memory ? [...this.memory.values()] : await settled(this._at("readonly").getAll());
    return found.sort((a, b) => b.changed - a.changed);
  }

  async get(id) {
    return this.memory ? this.memory.get(id) : settled(this._at("readonly").get(id));
  }

  async put(conversation) {
    if (this.memory) this.memory.set(conversation.id, conversation);
    else await settled(this._at("readwrite").put(conversation));
  }

  async delete(id) {
    if (this.memory) this.memory.delete(id);
    else await settled(this._at("readwrite").delete(id));
  }
}
