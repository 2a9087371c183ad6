from datetime import datetime

import pytest
from jinja2.exceptions import SecurityError, TemplateError, UndefinedError

from gguf_serve.engine.chat.rendering.sandbox import ChatEnvironment


def run(source: str, **variables: object) -> str:
    environment = ChatEnvironment(lambda: datetime(2026, 1, 2, 3, 4, 5))
    return environment.from_string(source).render(variables)


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
