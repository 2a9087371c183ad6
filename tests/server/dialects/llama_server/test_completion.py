"""llama-server's own completions and infill."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gguf_serve.engine.request import Delta, Event, Finished, Progress, Request, Started, Timings
from gguf_serve.server.options.request_defaults import Defaults

TEXT = "Hello wörld"


@pytest.fixture
def engine(fakes: Any) -> Any:
    return fakes.engine()


@pytest.fixture
def url(serve: Any, engine: Any) -> str:
    return serve(engine)


def post(url: str, path: str = "/completion", **body: Any) -> Any:
    response = httpx.post(url + path, json={"prompt": "Say"} | body)
    assert response.status_code == 200, response.text
    return response.json()


def chunks(url: str, path: str = "/completion", **body: Any) -> list[Any]:
    text = httpx.post(url + path, json={"prompt": "Say", "stream": True} | body).text
    return [json.loads(part.removeprefix("data: ")) for part in text.split("\n\n")[:-1]]


@pytest.mark.parametrize("path", ["/completion", "/completions"])
def test_completion(url: str, engine: Any, path: str) -> None:
    answer = post(url, path, n_predict=40, temperature=0.3, stop=["X"])
    assert (answer["content"], answer["stop"], answer["index"]) == (TEXT, True, 0)
    assert (answer["stop_type"], answer["stopping_word"]) == ("eos", "")
    assert (answer["tokens"], answer["truncated"], answer["has_new_line"]) == ([], False, False)
    assert (answer["tokens_evaluated"], answer["tokens_predicted"]) == (4, len(TEXT.encode()))
    assert answer["prompt"] == "Say"
    settings = answer["generation_settings"]
    assert settings["temperature"] == 0.3
    assert (settings["n_predict"], settings["stop"]) == (40, ["X"])
    assert (settings["n_keep"], settings["n_discard"], len(settings["lora"])) == (0, 0, 2)
    assert (settings["stream"], settings["timings_per_token"]) == (False, False)
    assert answer["timings"]["predicted_n"] == len(TEXT.encode())
    assert "completion_probabilities" not in answer


def test_settings_that_are_given_show(url: str, engine: Any) -> None:
    engine.set_adapters([(0, 1.0), (1, 0.5)])
    body = {"n_keep": 3, "n_discard": 5, "timings_per_token": True}
    (*_, last) = chunks(url, **body, lora=[{"id": 1, "scale": 0.25}])
    settings = last["generation_settings"]
    assert {name: settings[name] for name in body} == body
    assert settings["stream"]
    assert settings["lora"] == [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 0.25}]
    settings = post(url)["generation_settings"]
    assert settings["lora"] == [{"id": 0, "scale": 1.0}, {"id": 1, "scale": 0.5}]


def test_ignore_eos_shows_as_a_bias(url: str) -> None:
    settings = post(url, ignore_eos=True, logit_bias=[[65, 1.5]])["generation_settings"]
    eos = 257
    assert settings["logit_bias"] == [{"token": 65, "bias": 1.5}, {"token": eos, "bias": None}]


def test_a_field_of_the_other_endpoint_is_honoured_or_refused(url: str) -> None:
    assert len(post(url, logprobs=2)["completion_probabilities"][0]["top_logprobs"]) == 2
    answer = httpx.post(url + "/completion", json={"prompt": "Say", "echo": True})
    assert answer.status_code == 400
    assert "'echo'" in answer.json()["error"]["message"]


def test_stream(url: str) -> None:
    *partial, final = chunks(url)
    assert "".join(chunk["content"] for chunk in partial) == TEXT
    assert all(chunk["stop"] is False and chunk["tokens"] for chunk in partial)
    assert (final["content"], final["tokens"], final["stop"]) == ("", [], True)
    assert final["stop_type"] == "eos"


def test_several_prompts_give_a_list(url: str) -> None:
    answers = post(url, prompt=["a", [98, 99]], n_predict=2)
    assert [answer["index"] for answer in answers] == [0, 1]
    assert [answer["prompt"] for answer in answers] == ["a", "bc"]
    assert all(answer["stop_type"] == "limit" for answer in answers)


def test_probabilities(url: str) -> None:
    answer = post(url, n_probs=2, n_predict=2, return_tokens=True)
    assert [entry["token"] for entry in answer["completion_probabilities"]] == ["H", "e"]
    assert answer["tokens"] == [*b"He"]


def test_chosen_fields(url: str) -> None:
    paths = ["content", "generation_settings/n_predict", "timings/predicted_n", "no/such"]
    answer = post(url, n_predict=2, response_fields=paths)
    assert answer == {
        "content": "He", "generation_settings/n_predict": 2, "timings/predicted_n": 2,
    }  # fmt: skip
    assert chunks(url, n_predict=2, response_fields=["stop_type"])[-1] == {"stop_type": "limit"}


def test_limits_reach_the_engine(url: str, engine: Any) -> None:
    post(url, t_max_predict_ms=50, n_indent=4)
    assert (engine.requests[0].max_ms, engine.requests[0].min_indent) == (50, 4)


def progresses(request: Request, cancelled: threading.Event) -> Iterator[Event]:
    yield Started(4, 1, 0)
    yield Progress(4, 1, 3, 5.2)
    yield Progress(4, 1, 4, 9.0)
    yield Delta("a", (97,))
    yield Finished("eos", Timings(predicted_n=1))


def test_progress(serve: Any, fakes: Any) -> None:
    engine = fakes.engine(progresses)
    url = serve(engine)
    first, second, *_ = chunks(url, return_progress=True)
    assert first["prompt_progress"] == {"total": 4, "cache": 1, "processed": 3, "time_ms": 5}
    assert (second["prompt_progress"]["processed"], second["content"]) == (4, "")
    assert engine.requests[0].progress
    messages = [{"role": "user", "content": "x"}]
    text = httpx.post(
        url + "/v1/chat/completions",
        json={"messages": messages, "stream": True, "return_progress": True},
    ).text
    parts = [json.loads(part.removeprefix("data: ")) for part in text.split("\n\n")[:-2]]
    assert ["prompt_progress" in part for part in parts] == [True, True, False, False]
    roles = ["role" in part["choices"][0]["delta"] for part in parts]
    assert roles == [True, True, False, False]


def test_infill(serve: Any, fakes: Any) -> None:
    engine = fakes.engine()
    url = serve(engine)
    body = {"input_prefix": "a", "input_suffix": "b", "prompt": "c"}
    response = httpx.post(url + "/infill", json=body)
    assert (response.status_code, response.json()["error"]["type"]) == (501, "not_supported_error")
    engine.tokenizer.fim = fakes.fim(prefix=1, suffix=2, middle=3, repo=4, separator=5)
    assert post(url, "/infill", **body)["content"] == TEXT
    assert engine.requests[-1].prompt == (256, 1, *b"ac", 2, *b"b", 3)
    post(url, "/infill", input_extra=[{"filename": "f", "text": "t"}], **body)
    extra = (4, *b"myproject\n", 5, *b"f\nt", 5, *b"filename\n")
    assert engine.requests[-1].prompt == (256, *extra, 1, *b"ac", 2, *b"b", 3)
    second = serve(engine, defaults=Defaults(spm_infill=True))
    post(second, "/infill", **body)
    assert engine.requests[-1].prompt == (256, 2, *b"b", 1, *b"ac", 3)
    post(url, "/infill", samplers=["top_k", "top_p", "infill"], **body)  # as llama.vim does
    assert engine.requests[-1].sampling.samplers == ("top_k", "top_p", "infill")
    response = httpx.post(url + "/infill", json={"input_prefix": "a"})
    assert "input_suffix" in response.json()["error"]["message"]
