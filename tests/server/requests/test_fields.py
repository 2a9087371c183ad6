"""Fields of request bodies: types, limits, precedences, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gguf_serve.engine.sampling_params import (
    DEFAULT_SAMPLERS,
    NO_RULES,
    SamplingParams,
    TokenRules,
)
from gguf_serve.server.errors import ApiError
from gguf_serve.server.http.body import read_object
from gguf_serve.server.requests.conversation import Chat
from gguf_serve.server.requests.fields import (
    MAX_BIASES,
    UNSUPPORTED,
    CompletionFields,
    convert,
    max_tokens,
    n_choices,
    n_kept,
    refuse,
    sampling_params,
    stop_strings,
    token_rules,
)


class Tokenizer:
    n_vocab = 300

    def encode(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        assert not add_special
        return list(text.encode())


def parse(**body: Any) -> CompletionFields:
    data = read_object(json.dumps({"prompt": "x"} | body).encode())
    refuse(data, UNSUPPORTED)
    return convert(data, CompletionFields)


def sampling(default: SamplingParams | None = None, **body: Any) -> SamplingParams:
    return sampling_params(parse(**body), default or SamplingParams(), Tokenizer())  # type: ignore[arg-type]


def refused(**body: Any) -> str:
    with pytest.raises(ApiError) as caught:
        sampling(**body)
    assert caught.value.status == 400
    return caught.value.message


def test_an_empty_body_gives_the_defaults() -> None:
    default = SamplingParams(temperature=0.1, top_k=7)
    assert sampling(default) == default


def test_null_is_absent() -> None:
    names = [*Chat.__struct_fields__, *UNSUPPORTED]
    body = {name: None for name in names if name != "prompt"}
    assert sampling(**body) == SamplingParams()


@pytest.mark.parametrize(
    ("name", "given", "taken"),
    [
        ("temperature", 0.5, 0.5),
        ("temperature", -1, 0.0),
        ("temperature", 2, 2.0),
        ("top_p", 1.5, 1.0),
        ("min_p", -0.5, 0.0),
        ("top_k", -3, 0),
        ("top_k", 10.0, 10),
        ("mirostat", 5, 2),
        ("xtc_probability", 2, 1.0),
        ("typical_p", 0.3, 0.3),
        ("top_n_sigma", 1.5, 1.5),
        ("dynatemp_range", 0.2, 0.2),
        ("dynatemp_exponent", 1.2, 1.2),
        ("dry_multiplier", 0.8, 0.8),
        ("dry_base", 0.5, 1.75),
        ("dry_base", 2, 2.0),
        ("dry_allowed_length", 4, 4),
        ("dry_penalty_last_n", -1, -1),
        ("dry_sequence_breakers", ["a"], ("a",)),
        ("repeat_penalty", 1.1, 1.1),
        ("repeat_last_n", -1, -1),
        ("presence_penalty", -0.5, -0.5),
        ("frequency_penalty", 0.5, 0.5),
        ("mirostat_tau", 4, 4.0),
        ("mirostat_eta", 0.2, 0.2),
        ("min_keep", 3, 3),
        ("ignore_eos", True, True),
        ("seed", -1, -1),
        ("seed", 2**32 - 1, -1),
        ("seed", 42, 42),
        ("seed", 2**40 + 5, 5),
        ("samplers", ["top-k", "temp", "typical_p"], ("top_k", "temperature", "typ_p")),
        ("samplers", "edskypmxt", DEFAULT_SAMPLERS),
        ("samplers", [], ()),
        ("samplers", ["top_k", "top_p", "infill"], ("top_k", "top_p", "infill")),
    ],
)
def test_sampling_fields(name: str, given: Any, taken: Any) -> None:
    assert getattr(sampling(**{name: given}), name) == taken


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ([[5, 1.5], [6, False]], ((5, 1.5), (6, -float("inf")))),
        ([["hi", -1]], ((104, -1.0), (105, -1.0))),
        ({"5": 1, "hi": False}, ((5, 1.0), (104, -float("inf")), (105, -float("inf")))),
    ],
)
def test_logit_bias(given: Any, taken: Any) -> None:
    assert sampling(logit_bias=given).logit_bias == taken


@pytest.mark.parametrize(
    "given",
    [
        [[300, 1]],
        [[5]],
        [[5, "x"]],
        [[5, True]],
        [[5, 10**400]],
        {"-": None},
        {"9" * 5000: 1},
        [[5, 1]] * (MAX_BIASES + 1),
        [["x" * MAX_BIASES, 1], [5, 1]],
        "x",
    ],
)
def test_bad_logit_bias(given: Any) -> None:
    assert "logit_bias" in refused(logit_bias=given)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_predict", -2),
        ("max_tokens", -2),
        ("n_keep", -2),
        ("n_discard", -1),
        ("repeat_last_n", -2),
        ("dry_penalty_last_n", -2),
        ("min_keep", -1),
        ("n_probs", -1),
        ("n_probs", 1025),
        ("logprobs", 2000),
    ],
)
def test_limits(name: str, value: int) -> None:
    assert refused(**{name: value}).startswith(f"Field '{name}': Value must be between ")


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("temperature", "hot", "float"),
        ("top_k", 1.5, "int"),
        ("stop", 5, "str"),
        ("stop", ["a", 5], "str"),
        ("stream", "yes", "bool"),
        ("ignore_eos", 1, "bool"),
        ("samplers", ["magic"], "unknown sampler 'magic'"),
        ("samplers", "kz", "unknown sampler 'z'"),
        ("dry_sequence_breakers", [], "non-empty"),
        ("dry_sequence_breakers", ["x"] * 65, "at most 64"),
    ],
)
def test_wrong_types(name: str, value: Any, kind: str) -> None:
    message = refused(**{name: value})
    assert message.startswith(f"Field '{name}")
    assert kind in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logits_processors", ["a.b"]),
        ("use_beam_search", True),
        ("response_fields", ["content"]),
    ],
)
def test_what_cannot_be_honoured_is_named(name: str, value: Any) -> None:
    assert refused(**{name: value}).startswith(f"Field '{name}': ")


def test_values_that_ask_for_nothing_pass() -> None:
    for name, values in UNSUPPORTED.items():
        for value in values:
            sampling(**{name: value})


def test_a_repetition_penalty_looks_at_everything() -> None:
    both = sampling(repetition_penalty=1.2)
    assert (both.repeat_penalty, both.repeat_last_n) == (1.2, -1)
    assert sampling(repetition_penalty=1.2, repeat_last_n=9).repeat_last_n == 9
    assert sampling(repetition_penalty=1.2, repeat_penalty=1.1).repeat_penalty == 1.1


def rules(**body: Any) -> TokenRules:
    return token_rules(parse(**body), Tokenizer())  # type: ignore[arg-type]


def test_token_rules() -> None:
    assert rules() == NO_RULES
    found = rules(min_tokens=3, stop_token_ids=[7], allowed_token_ids=[1, 2], bad_words=["no"])
    assert found == TokenRules(3, frozenset({7}), (tuple(b"no"), tuple(b" no")), (1, 2))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"stop_token_ids": [300]}, r"'stop_token_ids': token 300 is outside"),
        ({"allowed_token_ids": [-1]}, r"'allowed_token_ids': token -1 is outside"),
        ({"allowed_token_ids": []}, "no token could be written"),
        ({"bad_words": ["x"] * 257}, "'bad_words': at most 256 words, got 257"),
        ({"bad_words": ["x" * 5000]}, "'bad_words': a text has at most 4096"),
        ({"min_tokens": -1}, "'min_tokens': Value must be between 0"),
    ],
)
def test_rules_that_are_refused(body: dict[str, Any], reason: str) -> None:
    with pytest.raises(ApiError, match=reason):
        rules(**body)


def test_how_much_of_a_prompt_is_kept() -> None:
    assert n_kept(None, 5, 100) is None
    assert n_kept(7, 5, 100) == 7
    assert n_kept(-1, 5, 100) == 95
    assert n_kept(-1, -1, 100) == 99
    assert n_kept(-1, 500, 100) == 1
    with pytest.raises(ApiError, match="'truncate_prompt_tokens': expected -1 or"):
        n_kept(0, 5, 100)


def test_precedence_of_limits() -> None:
    assert max_tokens(parse(), 9) == 9
    assert max_tokens(parse(max_tokens=1), 9) == 1
    assert max_tokens(parse(max_tokens=1, max_completion_tokens=2), 9) == 2
    assert max_tokens(parse(max_tokens=1, max_completion_tokens=2, n_predict=0), 9) == 0


def test_n_cmpl_goes_before_n() -> None:
    assert n_choices(parse(), 4) == 1
    assert n_choices(parse(n=2), 4) == 2
    assert n_choices(parse(n=2, n_cmpl=3), 4) == 3


def test_best_of_is_taken_where_all_answers_are_the_best() -> None:
    assert n_choices(parse(n=2, best_of=2), 4) == n_choices(parse(n=2, best_of=1), 4) == 2
    assert n_choices(parse(best_of=1), 4) == 1
    for given in ({"best_of": 2}, {"n": 2, "best_of": 3}):
        with pytest.raises(ApiError, match="'best_of'"):
            n_choices(parse(**given), 4)


def test_too_many_choices() -> None:
    with pytest.raises(ApiError, match="Field 'n': Value must be between 1 and 4, got 0"):
        n_choices(parse(n=0), 4)


def test_stop() -> None:
    assert stop_strings(parse(stop="a"), ("r",)) == ("a",)
    assert stop_strings(parse(stop=["a", "", "b"]), ("r",)) == ("a", "b")
    assert stop_strings(parse(stop=[]), ("r",)) == ("r",)
    assert stop_strings(parse(), ("r",)) == ("r",)
