import json

from gguf_serve.engine.chat.builtin import builtin_names, builtin_template
from gguf_serve.engine.chat.rendering.template import ChatTemplate


def test_every_record_is_equal(shared):
    path = shared / "conformance" / "chat" / "builtin.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert {row["builtin"] for row in rows} == set(builtin_names())
    different = []
    for row in rows:
        source = builtin_template(row["builtin"])
        text = ChatTemplate(source).render(
            row["messages"], add_generation_prompt=row["add_generation_prompt"]
        )
        if text != row["expected"]:
            different.append((row["builtin"], row["messages"][0]["role"]))
    # llama.cpp's own format drops the system message here; with Jinja it is folded into the
    # user's, by llama.cpp too, and so it is here.
    assert set(different) == {("yandex", "system")}


def test_yandex_folds_the_system_message():
    template = ChatTemplate(builtin_template("yandex"))
    text = template.render([{"role": "system", "content": "S"}, {"role": "user", "content": "U"}])
    assert text == " Пользователь: S\nU\n\n Ассистент:[SEP]"


def test_texts_are_literal():
    template = ChatTemplate(builtin_template("chatml"))
    text = template.render([{"role": "user", "content": '{{ 1 }} {% "\\n" <b>'}])
    assert text == '<|im_start|>user\n{{ 1 }} {% "\\n" <b><|im_end|>\n<|im_start|>assistant\n'


def test_unknown_name():
    assert builtin_template("nope") is None
