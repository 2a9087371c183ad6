import pytest

from gguf_serve.engine.chat.rendering.selection import named_template
from gguf_serve.engine.chat.rendering.template import ChatTemplate
from gguf_serve.engine.errors import RequestError

USER = {"role": "user", "content": "U"}
TRIMMING = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}<think>\n"
    "{{ m.reasoning_content | trim }}\n</think>\n\n{% endif %}{{ m.content | trim }}</end>"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def continued(source: str, last: dict[str, str], mode: bool | str = True) -> str:
    template = ChatTemplate(source)
    message = {"role": "assistant", **last}
    return template.render(
        [USER, message], add_generation_prompt=False, continue_final_message=mode
    )


def test_content_is_continued_with_its_white_space():
    text = continued(named_template("llama3"), {"content": "It is "})
    assert text.endswith("U<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nIt is ")


def test_reasoning_and_content():
    text = continued(TRIMMING, {"reasoning_content": "R", "content": " C "})
    assert text == "<user>U</end><assistant><think>\nR\n</think>\n\n C "


def test_reasoning_alone_is_continued():
    text = continued(TRIMMING, {"reasoning_content": "R ", "content": ""})
    assert text == "<user>U</end><assistant><think>\nR "


def test_the_field_can_be_chosen():
    last = {"reasoning_content": "R", "content": ""}
    assert continued(TRIMMING, last, "content").endswith("<think>\nR\n</think>\n\n")
    assert continued(TRIMMING, last, "reasoning_content").endswith("<think>\nR")


def test_reasoning_that_the_template_does_not_show_goes_between_its_tags():
    source = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content.split('</think>')[-1] }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]<think>\n{% endif %}"
    )
    text = continued(source, {"reasoning_content": "R", "content": "C"})
    assert text == "[user]U[assistant]<think>R</think>C"


def test_parts_are_continued_as_their_text():
    message = {"role": "assistant", "content": [{"type": "text", "text": "It is"}]}
    template = ChatTemplate(named_template("chatml"))
    text = template.render([USER, message], continue_final_message=True)
    assert text.endswith("<|im_start|>assistant\nIt is")


@pytest.mark.parametrize(
    ("roles", "error"),
    [
        (["assistant", "user"], "of the role [^,]*, expected assistant"),
        ([], "of the role [^,]*, expected assistant"),
        (["user", "assistant", "assistant"], "Cannot have 2 or more assistant messages"),
    ],
)
def test_what_cannot_be_continued(roles, error):
    messages = [{"role": role, "content": "x"} for role in roles]
    with pytest.raises(RequestError, match=error):
        ChatTemplate(named_template("chatml")).render(messages, continue_final_message=True)
