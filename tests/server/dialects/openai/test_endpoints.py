"""The two completion endpoints and the list of models, through the openai client."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from gguf_serve.engine.request import (
    Delta,
    Event,
    Failed,
    Finished,
    Generation,
    Request,
    Scoring,
    Started,
    Timings,
)
from gguf_serve.server.requests.answer import LEAST_MS, ratio

TEXT = "Hello wörld"
N_BYTES = len(TEXT.encode())
USER = [{"role": "user", "content": "hi"}]
PROMPT = "<s>user: hi\nassistant:"


@pytest.fixture
def engine(fakes: Any) -> Any:
    return fakes.engine()


@pytest.fixture
def url(serve: Any, engine: Any) -> str:
    return serve(engine)


def test_chat(url: str, client: Any, engine: Any) -> None:
    answer = client(url).chat.completions.create(model="anything", messages=USER)
    assert answer.object == "chat.completion"
    assert re.fullmatch(r"chatcmpl-[A-Za-z0-9]{32}", answer.id)
    assert answer.model == "tiny.Q8_0.gguf"
    assert re.match(r"b\d+-gguf-serve-", answer.system_fingerprint)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", TEXT)
    assert choice.finish_reason == "stop"
    assert answer.usage.prompt_tokens == len(PROMPT) - 2  # <s> is one token
    assert answer.usage.completion_tokens == N_BYTES
    assert answer.usage.total_tokens == len(PROMPT) - 2 + N_BYTES
    assert answer.usage.prompt_tokens_details.cached_tokens == 2
    (request,) = engine.requests
    assert request.prompt == (256, *PROMPT.removeprefix("<s>").encode())


def test_timings_count_steps_without_the_first_token(url: str, client: Any) -> None:
    answer = client(url).chat.completions.create(model="m", messages=USER)
    timings = answer.timings
    assert timings["cache_n"] == 2
    assert timings["prompt_n"] == len(PROMPT) - 4
    assert timings["prompt_per_second"] == pytest.approx((len(PROMPT) - 4) * 100)
    assert timings["predicted_n"] == N_BYTES
    assert timings["predicted_per_second"] == pytest.approx((N_BYTES - 1) * 10)
    assert timings["predicted_per_token_ms"] == pytest.approx(100 / (N_BYTES - 1))


def test_one_token_has_no_rate(url: str, client: Any) -> None:
    answer = client(url).chat.completions.create(model="m", messages=USER, max_tokens=1)
    assert answer.timings["predicted_per_second"] == 0.0
    assert answer.choices[0].finish_reason == "length"


def test_tokens_of_one_step_have_no_rate() -> None:
    assert ratio(1e3 * 2, 0.02, LEAST_MS) == 0.0
    assert ratio(1e3 * 2, 20.0, LEAST_MS) == 100.0


def test_chat_stream(url: str, client: Any) -> None:
    stream = client(url).chat.completions.create(
        model="m", messages=USER, stream=True, stream_options={"include_usage": True}
    )
    first, *middle, final, usage = list(stream)
    assert first.choices[0].delta.role == "assistant"
    assert first.choices[0].delta.content is None
    assert "".join(chunk.choices[0].delta.content for chunk in middle) == TEXT
    assert all(chunk.choices[0].delta.role is None for chunk in middle)
    assert all(chunk.choices[0].delta.content for chunk in middle)
    assert final.choices[0].finish_reason == "stop"
    assert usage.choices == []
    assert usage.usage.completion_tokens == N_BYTES
    assert usage.timings["predicted_n"] == N_BYTES
    assert not hasattr(final, "timings")


def stream_lines(url: str, path: str, body: dict[str, Any]) -> list[str]:
    response = httpx.post(url + path, json=body | {"stream": True})
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    text = response.text
    assert text.endswith("\n\n")
    return text.removesuffix("\n\n").split("\n\n")


def test_chat_stream_bytes(serve: Any, fakes: Any) -> None:
    url = serve(fakes.engine(fakes.say("é!")))
    lines = stream_lines(url, "/chat/completions", {"messages": USER})
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    head = {name: chunks[0][name] for name in ("id", "created", "model", "system_fingerprint")}
    head["object"] = "chat.completion.chunk"
    opening = {"role": "assistant", "content": None}
    deltas: list[dict[str, Any]] = [opening, {"content": "é"}, {"content": "!"}, {}]
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == deltas
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 3 + ["stop"]
    assert all({name: chunk[name] for name in head} == head for chunk in chunks)
    assert ["timings" in chunk for chunk in chunks] == [False, False, False, True]
    assert not any("usage" in chunk for chunk in chunks)


def test_timings_per_token(serve: Any, fakes: Any) -> None:
    url = serve(fakes.engine(fakes.say("abc")))
    body = {"messages": USER, "timings_per_token": True}
    lines = stream_lines(url, "/v1/chat/completions", body)[:-1]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert "timings" not in chunks[0]
    assert [chunk["timings"]["predicted_n"] for chunk in chunks[1:]] == [1, 2, 3, 3]


def test_verbose(serve: Any, engine: Any) -> None:
    url = serve(engine, verbose=True) + "/v1/chat/completions"
    body = {"messages": USER, "max_tokens": 5, "top_k": 7}
    answer = httpx.post(url, json=body).json()["__verbose"]
    assert (answer["prompt"], answer["content"], answer["stop_type"]) == (PROMPT, "Hello", "limit")
    assert answer["generation_settings"]["top_k"] == 7
    assert "__verbose" not in httpx.post(url, json=body | {"verbose": False}).json()
    lines = httpx.post(url, json=body | {"stream": True}).text.split("\n\n")
    (shown,) = [json.loads(line[6:])["__verbose"] for line in lines if "__verbose" in line]
    assert (shown["content"], shown["tokens_predicted"]) == ("Hello", 5)


def test_an_answer_without_text(serve: Any, fakes: Any) -> None:
    lines = stream_lines(
        serve(fakes.engine(fakes.say(""))), "/chat/completions", {"messages": USER}
    )
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines[:-1]]
    assert deltas == [{"role": "assistant", "content": None}, {}]


def test_n_choices(url: str, client: Any, engine: Any) -> None:
    answer = client(url).chat.completions.create(model="m", messages=USER, n=3, seed=7)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage.prompt_tokens == len(PROMPT) - 2
    assert answer.usage.completion_tokens == 3 * N_BYTES
    assert sorted(request.sampling.seed for request in engine.requests) == [7, 8, 9]
    with pytest.raises(openai.BadRequestError, match="'n': Value must be between 1 and 4"):
        client(url).chat.completions.create(model="m", messages=USER, n=5)


def test_n_choices_stream(url: str, client: Any) -> None:
    stream = client(url).chat.completions.create(model="m", messages=USER, n=2, stream=True)
    texts = ["", ""]
    roles = [0, 0]
    for chunk in stream:
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        roles[choice.index] += choice.delta.role == "assistant"
    assert texts == [TEXT, TEXT]
    assert roles == [1, 1]


def test_chat_logprobs(url: str, client: Any) -> None:
    answer = client(url).chat.completions.create(
        model="m", messages=USER, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in content).decode() == TEXT
    assert (content[0].token, content[0].id, content[0].logprob) == ("H", ord("H"), -1.0)
    assert [top.token for top in content[0].top_logprobs] == ["I", "H", "A"]
    assert content[0].top_logprobs[2].logprob == -3.4028234663852886e38
    cut = content[TEXT.index("ö")]
    assert (cut.token, cut.bytes) == ("", [0xC3])


def test_chat_logprobs_stream_holds_scores_until_their_text(url: str, client: Any) -> None:
    stream = client(url).chat.completions.create(
        model="m", messages=USER, logprobs=True, top_logprobs=0, stream=True
    )
    for chunk in list(stream)[1:-1]:
        entries = chunk.choices[0].logprobs.content
        text = b"".join(bytes(entry.bytes) for entry in entries).decode()
        assert text == chunk.choices[0].delta.content
        assert all(entry.top_logprobs == [] for entry in entries)


def test_chat_logprobs_rules(url: str, client: Any, engine: Any) -> None:
    create = client(url).chat.completions.create
    create(model="m", messages=USER, logprobs=True)
    assert engine.requests[0].n_probs == 20
    with pytest.raises(openai.BadRequestError, match="top_logprobs"):
        create(model="m", messages=USER, top_logprobs=2)
    tools = [{"type": "function", "function": {"name": "f"}}]
    with pytest.raises(openai.BadRequestError, match="logprobs"):
        create(model="m", messages=USER, logprobs=True, tools=tools, stream=True)


def test_post_sampling_probs(url: str, engine: Any) -> None:
    body = {"messages": USER, "n_probs": 3, "post_sampling_probs": True, "max_tokens": 1}
    answer = httpx.post(url + "/v1/chat/completions", json=body).json()
    (entry,) = answer["choices"][0]["logprobs"]["content"]
    assert set(entry) == {"id", "token", "bytes", "prob", "top_probs"}
    assert engine.requests[0].post_sampling_probs


def test_stop_word_tokens_are_cut(serve: Any, fakes: Any, client: Any) -> None:
    def script(request: Request, cancelled: threading.Event) -> Iterator[Event]:
        yield Started(1, 0, 0)
        yield Delta("a", (97,), (fakes.score(97, 1),))
        yield Delta("", (98,), (fakes.score(98, 1),))
        yield Finished("word", Timings(predicted_n=2), stopping_word="b")

    engine = fakes.engine(script)
    answer = client(serve(engine)).chat.completions.create(
        model="m", messages=USER, stop=["b", ""], logprobs=True
    )
    choice = answer.choices[0]
    assert (choice.message.content, choice.finish_reason) == ("a", "stop")
    assert [entry.token for entry in choice.logprobs.content] == ["a"]
    assert engine.requests[0].stop == ("b",)


def test_return_tokens(url: str) -> None:
    body = {"prompt": "x", "return_tokens": True, "max_tokens": 3}
    answer = httpx.post(url + "/v1/completions", json=body).json()
    assert answer["choices"][0]["tokens"] == [*b"Hel"]


def test_prefilled_assistant_message(url: str, client: Any, engine: Any) -> None:
    messages = [*USER, {"role": "assistant", "content": "Well"}]
    client(url).chat.completions.create(model="m", messages=messages)
    call = engine.chat_template.asked()
    assert call["continue_final_message"] is True
    assert call["add_generation_prompt"] is False
    with pytest.raises(openai.BadRequestError, match="2 or more assistant messages"):
        client(url).chat.completions.create(model="m", messages=[*messages, messages[-1]])


def test_what_reaches_the_template(url: str, client: Any, engine: Any) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    create = client(url).chat.completions.create
    create(
        model="m",
        messages=USER,
        tools=tools,
        reasoning_effort="low",
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )
    call = engine.chat_template.asked()
    assert call["tools"] == tools
    assert call["extra"] == {"reasoning_effort": "low", "enable_thinking": False}
    create(model="m", messages=USER, tools=tools, tool_choice="none")
    for wrong in ({"type": "allowed_tools"}, {"type": "allowed_tools", "allowed_tools": "f"}):
        with pytest.raises(openai.BadRequestError, match="tool_choice"):
            create(model="m", messages=USER, tools=tools, tool_choice=wrong)
    assert engine.chat_template.asked()["tools"] is None


def test_an_answer_that_refused_is_its_text(url: str, client: Any, engine: Any) -> None:
    parts = [{"type": "text", "text": "Hm. "}, {"type": "refusal", "refusal": "No."}]
    messages = [*USER, {"role": "assistant", "content": parts}, *USER]
    client(url).chat.completions.create(model="m", messages=messages)
    content = engine.chat_template.asked()["messages"][1]["content"]
    assert [part["text"] for part in content] == ["Hm. ", "No."]


@pytest.mark.parametrize(
    ("messages", "names"),
    [
        ([], "messages"),
        ([{"content": "x"}], r"messages\[0\].role"),
        ([{"role": "user"}], r"messages\[0\].content"),
        ([{"role": "user", "content": 5}], r"messages\[0\].content"),
        ([{"role": "assistant", "content": [{"type": "refusal"}]}], r"content\[0\].refusal"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            r"messages\[0\].content\[0\].*image input is not",
        ),
    ],
)
def test_messages_are_checked(url: str, client: Any, messages: Any, names: str) -> None:
    with pytest.raises(openai.BadRequestError, match=names):
        client(url).chat.completions.create(model="m", messages=messages)


def test_context_overflow_before_any_header(serve: Any, fakes: Any, client: Any) -> None:
    url = serve(fakes.engine(n_ctx=10))
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client(url).chat.completions.create(model="m", messages=USER, stream=stream)
        assert caught.value.body == {
            "code": 400,
            "message": "request (20 tokens) exceeds the available context size (10 tokens), "
            "try increasing it",
            "type": "exceed_context_size_error",
            "n_prompt_tokens": 20,
            "n_ctx": 10,
        }


def fails(after: list[Event]) -> Any:
    def script(request: Request, cancelled: threading.Event) -> Iterator[Event]:
        yield from after
        time.sleep(0.05)
        yield Failed("out of memory")

    return script


def test_fault_before_the_start_is_an_http_error(serve: Any, fakes: Any, client: Any) -> None:
    url = serve(fakes.engine(fails([])))
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError, match="out of memory"):
            client(url).chat.completions.create(model="m", messages=USER, stream=stream)


def test_fault_in_a_stream_ends_it_without_done(serve: Any, fakes: Any, client: Any) -> None:
    url = serve(fakes.engine(fails([Started(3, 0, 0), Delta("a", (97,))])))
    lines = stream_lines(url, "/v1/chat/completions", {"messages": USER})
    assert json.loads(lines[-1].removeprefix("data: ")) == {
        "error": {"code": 500, "message": "out of memory", "type": "server_error"}
    }
    stream = client(url).chat.completions.create(model="m", messages=USER, stream=True)
    with pytest.raises(openai.APIError, match="out of memory"):
        list(stream)


def test_completion(url: str, client: Any, engine: Any) -> None:
    answer = client(url).completions.create(model="m", prompt="Say")
    assert answer.object == "text_completion"
    assert answer.choices[0].text == TEXT
    assert answer.choices[0].logprobs is None
    assert answer.usage.prompt_tokens == 4
    assert engine.requests[0].prompt == (256, *b"Say")


def test_completion_with_a_suffix(serve: Any, fakes: Any, client: Any) -> None:
    engine = fakes.engine()
    engine.tokenizer.fim = fakes.fim(prefix=1, suffix=2, middle=3)
    create = client(serve(engine)).completions.create
    assert create(model="m", prompt="a", suffix="b").choices[0].text == TEXT
    assert engine.requests[0].prompt == (256, 1, *b"a", 2, *b"b", 3)
    with pytest.raises(openai.BadRequestError, match="suffix"):
        create(model="m", prompt=["a", "b"], suffix="c")


def test_completion_stream_ends_with_usage(url: str) -> None:
    lines = stream_lines(url, "/v1/completions", {"prompt": "Say"})
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert lines[-1] == "data: [DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == TEXT
    assert ["usage" in chunk for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["timings"]["predicted_n"] == N_BYTES


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ([72, 105], [(72, 105)]),
        (["a", "b"], [(256, 97), (256, 98)]),
        ([[72], [105, 33]], [(72,), (105, 33)]),
        ([72, "b", 33], [(72, 98, 33)]),
        (["a", [72, 33]], [(256, 97), (72, 33)]),
        ("", [(256,)]),
    ],
)
def test_prompt_shapes(url: str, client: Any, engine: Any, prompt: Any, expected: Any) -> None:
    answer = client(url).completions.create(model="m", prompt=prompt, max_tokens=1)
    assert [request.prompt for request in engine.requests] == expected
    assert [choice.index for choice in answer.choices] == list(range(len(expected)))


@pytest.mark.parametrize("prompt", [[], [[]], [999], {"prompt_text": "x"}, 5, [True]])
def test_bad_prompts(url: str, client: Any, prompt: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="prompt"):
        client(url).completions.create(model="m", prompt=prompt)


def test_legacy_logprobs(url: str, client: Any) -> None:
    answer = client(url).completions.create(model="m", prompt="Say", logprobs=1)
    logprobs = answer.choices[0].logprobs
    first_byte = TEXT.index("ö")
    assert logprobs.tokens[:2] == ["H", "e"]
    assert logprobs.tokens[first_byte : first_byte + 2] == ["bytes:\\xc3", "bytes:\\xb6"]
    assert logprobs.token_logprobs == [-1.0] * N_BYTES
    assert logprobs.top_logprobs[0] == {"I": -0.5, "H": -1.0}
    assert logprobs.text_offset[:3] == [0, 1, 2]
    assert logprobs.text_offset[first_byte:] == [7, 7, 8, 9, 10]
    assert [entry["id"] for entry in logprobs.content] == list(TEXT.encode())


def test_echo_scores_the_prompt(url: str, client: Any, engine: Any) -> None:
    answer = client(url).completions.create(
        model="m", prompt=[*b"Say"], echo=True, logprobs=1, max_tokens=0
    )
    assert engine.requests[0].max_tokens == 0
    assert engine.requests[0].wants == Scoring(1)
    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason) == ("Say", "length")
    assert choice.logprobs.tokens == ["S", "a", "y"]
    assert choice.logprobs.token_logprobs == [None, -1.0, -1.0]
    assert choice.logprobs.top_logprobs == [None, {"b": -0.5, "a": -1.0}, {"z": -0.5, "y": -1.0}]
    assert choice.logprobs.text_offset == [0, 1, 2]


def test_echo_of_a_string_counts_characters_without_bos(url: str, client: Any) -> None:
    answer = client(url).completions.create(
        model="m", prompt="dös", echo=True, logprobs=0, max_tokens=1
    )
    choice = answer.choices[0]
    assert choice.text == "dösH"
    assert choice.logprobs.tokens == ["<s>", "d", "bytes:\\xc3", "bytes:\\xb6", "s", "H"]
    assert choice.logprobs.text_offset == [0, 0, 1, 1, 2, 3]


def test_echo_of_several_prompts_streams_them_first(url: str, client: Any) -> None:
    stream = client(url).completions.create(
        model="m", prompt=["a", "b"], echo=True, logprobs=1, max_tokens=2, stream=True
    )
    texts, offsets = ["", ""], [[], []]  # type: ignore[var-annotated]
    for chunk in stream:
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
        offsets[choice.index] += choice.logprobs.text_offset
    assert texts == ["aHe", "bHe"]
    assert offsets == [[0, 0, 1, 2], [0, 0, 1, 2]]


def test_echo_without_logprobs(url: str, client: Any, engine: Any) -> None:
    answer = client(url).completions.create(model="m", prompt="ab", echo=True, max_tokens=1)
    assert answer.choices[0].text == "abH"
    assert engine.requests[0].wants == Generation()


def test_models(serve: Any, fakes: Any, client: Any) -> None:
    url = serve(fakes.engine(), aliases=["zeta", "alpha"], tags=["b", "a"])
    model, *_ = client(url).models.list().data
    assert model.tags == ["b", "a"]
    assert (model.id, model.owned_by, model.aliases) == ("alpha", "llamacpp", ["alpha", "zeta"])
    assert model.meta == {
        "vocab_type": 2,
        "n_vocab": 258,
        "n_ctx": 1000,
        "n_ctx_train": 512,
        "n_embd": 64,
        "n_params": 1_230_000,
        "size": 2_000_000,
        "ftype": "Q8_0",
    }
    listed = httpx.get(url + "/models").json()
    assert listed["models"][0]["capabilities"] == ["completion"]
    assert client(url).models.retrieve("alpha").id == "alpha"
    answer = client(url).chat.completions.create(model="other", messages=USER)
    assert answer.model == "alpha"
