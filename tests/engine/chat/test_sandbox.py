import time
from datetime import datetime

import pytest
from jinja2.exceptions import SecurityError, TemplateError, UndefinedError

from engine.chat import sandbox
from engine.chat.bounds import MAX_CHARS, RunawayTemplateError
from engine.chat.sandbox import ChatEnvironment


def run(source: str, **variables: object) -> str:
    environment = ChatEnvironment(lambda: datetime(2026, 1, 2, 3, 4, 5))
    template = environment.from_string(source)
    environment.begin()
    return template.render(variables)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ {'b': 'é<&\\'', 'a': none} | tojson }}", '{"b": "é<&\'", "a": null}'),
        ("{{ {'b': 1, 'a': [2]} | tojson(indent=1) }}", '{\n "b": 1,\n "a": [\n  2\n ]\n}'),
        ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}", '{"a": 2, "b": 1}'),
        ("{{ [1, 2] | tojson(separators=(',', ':')) }}", "[1,2]"),
        ("{{ 'é' | tojson(ensure_ascii=true) }}", '"\\u00e9"'),
        ("{{ [1, 2] | map('string') | tojson }}", '["1", "2"]'),
        ("{{ strftime_now('%d %b %Y') }}", "02 Jan 2026"),
        ("{% generation %}{% set x = 3 %}a{% endgeneration %}{{ x }}", "a3"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% for i in 'abc' %}{{ loop.index }}/{{ loop.length }} {% endfor %}", "1/3 2/3 3/3 "),
        ("{% for i in [1, [2]] recursive %}{{ i if i is number else loop(i) }}{% endfor %}", "12"),
        ("{% set n = namespace() %}{% for i in [2] %}{% set n.a = i %}{% endfor %}{{ n.a }}", "2"),
        ("{% set l = [1] %}{% set _ = l.append(2) %}{{ l.pop() }}{{ l }}", "2[1]"),
        ("{{ ('<b>' | safe) + '<' }}{{ ('<' | e) + '<' }}", "<b><&lt;<"),
        ("{{ 'a' + nothing }}{{ nothing + 'b' }}{{ nothing }}", "ab"),
        ("{{ 'a' ~ 1 ~ none }}", "a1None"),
        ("{{ nothing | default(1767323045) }}", "1767323045"),
        ("{{ ' x '.strip() }}{{ 'a,b'.split(',')[-1] }}{{ 'ab'[::-1] }}", "xbba"),
        ("{{ '{:>4}'.format(7) }}{{ '%03d' % 5 }}{{ 2 ** 10 }}{{ 'ab' * 2 }}", "   70051024abab"),
        ("  {% if true %}\n  x\n  {% endif %}\n", "  x\n"),
    ],
)  # fmt: skip
def test_what_templates_rely_on(source, text):
    assert run(source) == text


def test_undefined_is_still_an_error_elsewhere():
    with pytest.raises(UndefinedError):
        run("{{ nothing.a }}")
    with pytest.raises(UndefinedError):
        run("{{ nothing + 1 }}")


def test_format_shows_nothing_of_python():
    assert run("{{ '[{0.__class__}]'.format(1) }}") == "[]"


def test_raise_exception():
    with pytest.raises(TemplateError, match=r"^no$"):
        run("{{ raise_exception('no') }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_python_is_out_of_reach(source):
    with pytest.raises((SecurityError, UndefinedError)):
        run(source)


GROW = "{% set ns = namespace(s='abcd') %}{% for i in range(60) %}@{% endfor %}"


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10000000000 }}",
        "{{ [0] * 10000000000 }}",
        "{{ 'a' | center(10000000000) }}",
        "{{ 'a' | indent(10000000000, first=true) }}",
        "{{ 'a'.center(10000000000) }}",
        "{{ 'a'.ljust(width=10000000000) }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ '%10000000000d' | format(1) }}",
        "{{ '%*d' % (10000000000, 1) }}",
        "{{ '{:10000000000}'.format(1) }}",
        "{{ 10 ** 10000000000 }}",
        GROW.replace("@", "{% set ns.s = ns.s ~ ns.s %}"),
        GROW.replace("@", "{% set ns.s = ns.s + ns.s %}"),
        GROW.replace("@", "{% set ns.s = [ns.s, ns.s] | join %}"),
        GROW.replace("@", "{% set ns.s = ns.s.replace('a', ns.s) %}"),
        GROW.replace("@", "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}"),
    ],
)
def test_memory_is_bounded(source):
    with pytest.raises(RunawayTemplateError):
        run(source)


LONG = "{% set s = 'x' * 60000000 %}"
SHARED = "{% set a = [1] %}{% set b = [1] %}" + "{% set a = [a, a] %}{% set b = [b, b] %}" * 40


@pytest.mark.parametrize(
    "source",
    [
        "{% set t = (1, 1) %}" + "{% set t = t + t %}" * 40,
        "{% set n = 10 ** 300 %}" + "{% set n = n * n %}" * 30,
        "{% set l = [] %}{% for i in range(1000) %}{% set _ = l.append('x' * 60000000 ~ i) %}"
        "{% endfor %}",
        LONG + "{{ ([s] * 1000) | join }}",
        LONG + "{{ ''.join([s] * 1000) }}",
        LONG + "{{ s.replace('x', s) }}",
        LONG + "{{ s | replace('x', s) }}",
        LONG + "{{ ('{0}' * 500).format(s) }}",
        LONG + "{{ ('%(a)s' * 500) % {'a': s} }}",
        LONG + "{{ ('%(a)s' * 500) | format(a=s) }}",
        "{{ ('\t' * 1000).expandtabs(60000000) }}",
        "{{ ('x\n' * 1000) | indent(60000000) }}",
        "{{ ('x ' * 100000) | wordwrap(1, wrapstring='y' * 1000000) }}",
        "{{ ([[1] * 1000000] * 1000) | sum(start=[]) }}",
        "{{ [[1]] | tojson(indent=2000000000) }}",
        *(SHARED + text for text in (
            "{{ a | tojson }}", "{{ a | string }}", "{{ a }}", "{{ a ~ 'x' }}", "{{ a | pprint }}",
            "{{ a == b }}", "{{ a in [b] }}", "{{ [a, b] | unique | list }}",
        )),
    ],
)  # fmt: skip
def test_what_one_operation_builds_is_bounded(source):
    """Before it does: nobody could stop it, and the whole server would wait."""
    begin = time.monotonic()
    with pytest.raises(RunawayTemplateError):
        run(source)
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize("source", ["{{ 'a'.encode() }}", "{{ 'a'.translate({97: 'b'}) }}"])
def test_methods_that_no_prompt_needs(source):
    with pytest.raises(SecurityError):
        run(source)


def test_a_template_has_so_many_seconds(monkeypatch):
    monkeypatch.setattr(sandbox, "MAX_SECONDS", 0.5)
    with pytest.raises(RunawayTemplateError, match="seconds"):
        run(
            "{% for i in range(99999) %}{% set x = range(1000) | map('upper') | list %}{% endfor %}"
        )


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    ],
)
def test_time_is_bounded(source):
    with pytest.raises(RunawayTemplateError, match="steps"):
        run(source)


def test_long_prompts_are_no_attack():
    text = "x" * (MAX_CHARS // 8)
    assert run("{{ a }}{{ a + 'y' }}", a=text) == text + text + "y"
