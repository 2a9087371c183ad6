"""Templates that would end a server: whatever they do is the error of their own request."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from gguf_serve.engine import child
from gguf_serve.engine.chat.prompt import Conversation
from gguf_serve.engine.chat.rendering.confined import ConfinedTemplate, Templates
from gguf_serve.engine.chat.rendering.template import ChatTemplate
from gguf_serve.engine.child import Limits
from gguf_serve.engine.errors import ModelError, RequestError

USER = {"role": "user", "content": "x"}
# The template does its harm for one word only, so that its abilities can be found.
HARM = "{% if messages[0].content == 'harm' %}@{% endif %}{{ messages[0].content }}"
HARMFUL = Conversation([{"role": "user", "content": "harm"}])
HARMLESS = Conversation([USER])

Confined = Callable[..., ConfinedTemplate]


@pytest.fixture
def confined(monkeypatch: pytest.MonkeyPatch) -> Iterator[Confined]:
    monkeypatch.setattr(child, "CLOCK", 100)  # the processor's time is what ends them
    monkeypatch.setattr(child, "SETUP_CLOCK", 100)
    made: list[ConfinedTemplate] = []

    def make(source: str, seconds: float = 1.0, **others: str) -> ConfinedTemplate:
        limits = Limits(seconds, memory=64 << 20)
        made.append(ConfinedTemplate(Templates(source, **others), limits))
        return made[-1]

    yield make
    for template in made:
        template.close()


LONG = "{% set s = 'x' * 10000000 %}"
NESTED = (
    "{% set ns = namespace(a=[1], b=[1]) %}{% for _ in range(40) %}"
    "{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}"
)
DAILY = {
    "equality": NESTED + "{{ ns.a is eq ns.b }}",
    "itself": "{% set l = [1] %}{% for _ in range(99) %}{% set _ = l.extend(l) %}{% endfor %}",
    "format": "{{ ('{0:999999}' * 100000).format(1) }}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "text": "{{ 'a' * 10000000000 }}",
}
MORE = {
    "index": NESTED + "{{ [ns.a].index(ns.b) }}",
    "count": NESTED + "{{ [ns.a].count(ns.b) }}",
    "remove": NESTED + "{{ [ns.a].remove(ns.b) }}",
    "select": NESTED + "{{ [ns.a] | select('eq', ns.b) | list }}",
    "in": NESTED + "{{ ns.a in [ns.b] }}",
    "json": NESTED + "{{ ns.a | tojson }}",
    "percent": "{{ ('%999999d' * 100000) % ((messages | length,) * 100000) }}",
    "number": "{% set ns = namespace(n=10 ** 300) %}{% for _ in range(60) %}"
    "{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "power": "{{ messages | length ** 10000000000 + 3 ** (3 ** (16 + messages | length)) }}",
    "join": LONG + "{{ ([s] * 1000) | join }}",
    "replace": LONG + "{{ s.replace('x', s) }}",
    "indent": "{{ ('x\n' * 1000) | indent(60000000) }}",
    "wordwrap": "{{ ('x ' * 100000) | wordwrap(1, wrapstring='y' * 1000000) }}",
    "sum": "{{ ([[messages | length] * 1000000] * 1000) | sum(start=[]) }}",
    "block": "{% set ns = namespace(s='abcd') %}{% for _ in range(60) %}"
    "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}",
    "macro": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
}


@pytest.mark.parametrize("harm", DAILY.values(), ids=DAILY)
def test_harm_is_the_error_of_its_request(confined: Confined, harm: str) -> None:
    template = confined(HARM.replace("@", harm))
    template.check()
    assert template.prompt(HARMLESS).text == "x"
    with pytest.raises(RequestError, match=r"chat template: it took more than (1 sec|64 MiB)"):
        template.prompt(HARMFUL)
    assert template.prompt(HARMLESS).text == "x"


@pytest.mark.slow
@pytest.mark.parametrize("harm", MORE.values(), ids=MORE)
def test_more_harm_is_the_error_of_its_request(confined: Confined, harm: str) -> None:
    test_harm_is_the_error_of_its_request(confined, harm)


def test_the_interpreter_is_free_meanwhile(confined: Confined) -> None:
    template = confined(HARM.replace("@", DAILY["equality"]))
    template.caps  # noqa: B018  (so that the clock begins with the harm)
    ended = threading.Event()

    def harm() -> None:
        with pytest.raises(RequestError):
            template.prompt(HARMFUL)
        ended.set()

    thread = threading.Thread(target=harm)
    thread.start()
    longest = n_turns = 0.0
    while not ended.is_set():
        begin = time.process_time()
        time.sleep(0.001)
        longest = max(longest, time.process_time() - begin)
        n_turns += 1
    thread.join()
    assert n_turns > 20
    # Of this process' processor time, which a busy machine leaves alone: it was over a second in
    # one turn where the interpreter's lock was held.
    assert longest < 0.5


def test_another_request_is_answered_meanwhile(confined: Confined) -> None:
    template = confined(HARM.replace("@", DAILY["loops"]), seconds=60.0)
    assert template.prompt(HARMLESS).text == "x"

    def harm() -> None:
        with pytest.raises(RequestError):
            template.prompt(HARMFUL)

    thread = threading.Thread(target=harm)
    thread.start()
    while not template._pool._busy:
        time.sleep(0.001)
    assert template.prompt(HARMLESS).text == "x"
    assert template.prompt(HARMLESS).text == "x"
    assert thread.is_alive()
    template.close()
    thread.join()


def test_a_template_that_never_ends_is_tried_once(
    confined: Confined, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = confined(DAILY["loops"])
    template.check()
    with pytest.raises(RequestError, match="more than 1 seconds"):
        _ = template.caps
    monkeypatch.setattr(template._pool, "ask", lambda message: pytest.fail("it is tried again"))
    with pytest.raises(RequestError, match="more than 1 seconds"):
        template.prompt(HARMLESS)


def test_what_takes_long_to_compile_is_the_files_fault(confined: Confined) -> None:
    template = confined("{% if 3 ** (3 ** 17) %}{% endif %}")
    with pytest.raises(ModelError, match="while it was compiled, it took more than 1 seconds"):
        template.check()


def test_the_same_as_in_process(confined: Confined) -> None:
    source = "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }}{% endfor %}"
    source += "{{ tools | length if tools }}{{ mood }}{% if add_generation_prompt %}>{% endif %}"
    conversation = Conversation(
        [{"role": "system", "content": "é\U0001f600"}, USER], extra={"mood": [10**30, 1.5, None]}
    )
    inside = ChatTemplate(source, bos_token="B")
    outside = confined(source, bos_token="B")
    assert outside.source == source
    assert outside.caps == inside.caps
    assert outside.prompt(conversation) == inside.prompt(conversation)


def test_tools_have_a_template_of_their_own(confined: Confined) -> None:
    both = confined("A{{ messages[0].content }}", tool_use="B{{ tools[0].function.name }}")
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    assert both.for_tools(False).prompt(HARMLESS).text == "Ax"
    assert both.for_tools(True).prompt(Conversation([USER], tools)).text == "Bf"
    assert both.for_tools(True).caps.supports_tools is False
    assert both.for_tools(True).source == "B{{ tools[0].function.name }}"


def test_refusals_are_the_templates_own_words(confined: Confined) -> None:
    with pytest.raises(RequestError, match=r"^no$"):
        confined("{{ raise_exception('no') }}").prompt(HARMLESS)
    with pytest.raises(ModelError, match=r"chat template, line 2: "):
        confined("a\n{% endfor %}").check()
    with pytest.raises(RequestError, match="no text"):
        confined("{{ '\\ud800' }}").prompt(HARMLESS)


def test_a_template_that_nobody_has_any_more_leaves_no_process(confined: Confined) -> None:
    template = ConfinedTemplate(Templates("x"))
    template.check()
    process = template._pool._idle[0].process
    del template
    until = time.monotonic() + 60  # a thread that has been told to end may have it for a moment
    while process.poll() is None and time.monotonic() < until:
        gc.collect()
        time.sleep(0.01)
    assert process.poll() is not None


def test_the_server_itself_has_no_jinja() -> None:
    """It renders nothing, and starts sooner without."""
    lines = "import sys", "import gguf_serve.server.launch", "import gguf_serve.engine.engine"
    code = "; ".join([*lines, "print('jinja2' in sys.modules)"])
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
