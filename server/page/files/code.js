// "The same as code": the request of an answer, for curl, Python and JavaScript.
import { address, hasKey } from "./api.js";
import { $, ask, dialogHead, h } from "./dom.js";

const KEY = "YOUR_KEY";

const indented = (text, by) => text.replaceAll("\n", `\n${" ".repeat(by)}`);

/** JSON as Python writes it. */
function python(value, indent = 0) {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const inside = Array.isArray(value) ? value.map((item) => python(item, indent + 4))
    : Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${python(item, indent + 4)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  if (!inside.length) return open + close;
  const pad = " ".repeat(indent);
  return `${open}\n${inside.map((line) => `${pad}    ${line},\n`).join("")}${pad}${close}`;
}

const OPENAI = new Set(["messages", "temperature", "top_p", "max_tokens", "seed", "stop", "presence_penalty",
  "frequency_penalty", "response_format", "tools", "tool_choice", "reasoning_effort"]);

function pythonCode(body) {
  const own = Object.entries(body).filter(([name]) => OPENAI.has(name));
  const extra = Object.fromEntries(Object.entries(body).filter(([name]) => !OPENAI.has(name)));
  const lines = own.map(([name, value]) => `    ${name}=${python(value, 4)},`);
  if (Object.keys(extra).length) lines.push(`    extra_body=${python(extra, 4)},`);
  return `from openai import OpenAI

client = OpenAI(base_url="${address("v1")}", api_key="${hasKey() ? KEY : "none"}")
stream = client.chat.completions.create(
    model="any",
    stream=True,
${lines.join("\n")}
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
`;
}

function javascriptCode(body) {
  const whole = JSON.stringify({ model: "any", stream: true, ...body }, null, 2);
  return `import OpenAI from "openai";

const client = new OpenAI({ baseURL: "${address("v1")}", apiKey: "${hasKey() ? KEY : "none"}" });
const stream = await client.chat.completions.create(${whole});
for await (const chunk of stream) {
  process.stdout.write(chunk.choices[0]?.delta.content ?? "");
}
`;
}

function curlCode(body) {
  const data = JSON.stringify({ stream: true, ...body }, null, 2).replaceAll("'", "'\\''");
  const key = hasKey() ? ` \\\n  -H 'Authorization: Bearer ${KEY}'` : "";
  return `curl -N ${address("v1/chat/completions")} \\
  -H 'Content-Type: application/json'${key} \\
  -d '${indented(data, 2)}'
`;
}

export const LANGUAGES = { curl: curlCode, Python: pythonCode, JavaScript: javascriptCode };

export function openCode(body) {
  const dialog = $("code");
  const text = h("pre", { tabIndex: 0, "aria-label": "Code" });
  const field = h("select", { id: "code-language", onchange: fill },
    ...Object.keys(LANGUAGES).map((name) => h("option", { value: name }, name)));
  function fill() {
    text.textContent = LANGUAGES[field.value](body);
  }
  fill();
  return ask(dialog, dialogHead(dialog, "The same as code"),
    h("div", { class: "bar" },
      h("label", { for: "code-language" }, "Language"), field,
      h("button", { type: "button", onclick: () => navigator.clipboard.writeText(text.textContent) }, "Copy")),
    text);
}
