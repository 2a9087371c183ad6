"""``/docs``: the OpenAPI document for people, by dialect, each endpoint with a form to try it.

One file without others, so that it is there whatever of the chat page is turned off.
"""

from __future__ import annotations

import html
import json
from typing import Any

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<link rel="icon" href="data:image/svg+xml,%3Csvg xmlns=%22http://www.w3.org/2000/svg%22 \
viewBox=%220 0 32 32%22%3E%3Crect width=%2232%22 height=%2232%22 rx=%227%22 \
fill=%22%231f5fbf%22/%3E\
%3Cpath d=%22M9 10h14M9 16h9M9 22h12%22 stroke=%22%23fff%22 stroke-width=%223%22/%3E%3C/svg%3E">
<style>
:root{{color-scheme:light dark}}
body{{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}}
code,pre,textarea{{background:#8882;padding:.1em .3em;font-family:monospace}}
pre{{max-height:24em;overflow:auto;white-space:pre-wrap;overflow-wrap:anywhere}}
textarea{{width:100%;box-sizing:border-box}} details{{margin:.3em 0}}
h2{{margin-top:2em}} summary b{{font-family:monospace}}
</style>
<h1>{title}</h1>
<p>Also as <a href="openapi.json">OpenAPI</a>. <label>API key, where the server has any:
<input id="key" type="password" autocomplete="off"></label></p>
<nav>{contents}</nav>
{sections}
<script>{script}</script>
"""
SCRIPT = """
for (const form of document.forms) form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const [method, template] = [form.dataset.method, form.dataset.path];
  const path = template.replace(/{(\\w+)}/g, (_, name) => encodeURIComponent(form[name].value));
  const key = document.getElementById("key").value;
  const headers = key ? { authorization: "Bearer " + key } : {};
  const body = form.body && form.body.value;
  if (body) headers["content-type"] = "application/json";
  const shown = form.querySelector("pre");
  shown.hidden = false;
  shown.textContent = "...";
  try {
    const answer = await fetch(path.slice(1), { method, headers, body: body || undefined });
    shown.textContent = answer.status + " " + answer.statusText + "\\n";
    if ((answer.headers.get("content-type") || "").startsWith("audio/")) {
      const sound = new Audio(URL.createObjectURL(await answer.blob()));
      sound.controls = true;
      return shown.append(sound);
    }
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let part; !(part = await reader.read()).done; ) shown.textContent += part.value;
  } catch (error) {
    shown.textContent += error;
  }
});
"""


def page(described: dict[str, Any]) -> str:
    info = described["info"]
    title = html.escape(f"{info['title']} {info['version']}")
    tags = described["tags"]
    contents = " · ".join(
        f'<a href="#{i}">{html.escape(tag["name"])}</a>' for i, tag in enumerate(tags)
    )
    sections = "".join(section(i, tag, described) for i, tag in enumerate(tags))
    return PAGE.format(title=title, contents=contents, sections=sections, script=SCRIPT)


def section(number: int, tag: dict[str, str], described: dict[str, Any]) -> str:
    """All endpoints of a tag; those that are the same under another path are one."""
    found: dict[str, tuple[str, str, dict[str, Any], list[str]]] = {}
    for path, methods in described["paths"].items():
        for method, one in methods.items():
            if one["tags"] == [tag["name"]]:
                same = json.dumps([method, path.removeprefix("/v1"), one["summary"]])
                found.setdefault(same, (method, path, one, []))[3].append(path)
    schemas = described["components"]["schemas"]
    listed = "".join(endpoint(*each, schemas) for each in found.values())
    name, about = html.escape(tag["name"]), html.escape(tag["description"])
    return f'<h2 id="{number}">{name}</h2><p>{about}</p>{listed}'


def endpoint(
    method: str, path: str, one: dict[str, Any], paths: list[str], schemas: dict[str, Any]
) -> str:
    title = f"{method.upper()} {html.escape(path)}"
    others = ", ".join(f"<code>{html.escape(other)}</code>" for other in paths[1:])
    content = one.get("requestBody", {}).get("content", {})
    names = [each["schema"].get("$ref", "").rpartition("/")[2] for each in content.values()]
    fields = {field: 0 for name in names for field in schemas.get(name, {}).get("properties", {})}
    listed = ", ".join(f"<code>{html.escape(field)}</code>" for field in fields)
    media = content.get("application/json", {})
    return (
        f"<details><summary><b>{title}</b> {html.escape(one['summary'])}</summary>"
        + (f"<p>The same as {others}.</p>" if others else "")
        + (f"<p>Fields: {listed}</p>" if listed else "")
        + ("" if list(content) == ["multipart/form-data"] else trial(method, path, one, media))
        + "</details>"
    )


def trial(method: str, path: str, one: dict[str, Any], media: dict[str, Any]) -> str:
    """A form that sends a request and shows the answer as it comes."""
    inputs = "".join(
        f'<label>{html.escape(each["name"])} <input name="{html.escape(each["name"])}"></label> '
        for each in one.get("parameters", ())
    )
    if "requestBody" in one:
        text = json.dumps(media.get("example", {}), indent=2)
        rows = min(text.count("\n") + 2, 12)
        inputs += f'<textarea name="body" rows="{rows}">{html.escape(text)}</textarea>'
    return (
        f'<form data-method="{method.upper()}" data-path="{html.escape(path)}">{inputs}'
        "<button>Try it</button><pre hidden></pre></form>"
    )
