"""Text from tokens, with a decoder whose tokens are spelled out in the test."""

from __future__ import annotations

import codecs
import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_serve.engine.completion.output import Output
from gguf_serve.engine.request import Delta, TokenScore
from gguf_serve.engine.sampling_params import TokenRules

EOG = 0


class SpelledDecoder:
    """Token i is the bytes pieces[i]."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._utf8.decode(self._pieces[token])

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


def run(pieces: list[str | bytes], *stop: str, ended: bool = True) -> tuple[Output, list[Delta]]:
    """Push each piece as a token of its own, numbered from 1; then finish, if not ended."""
    spelled = [b"", *(p.encode() if isinstance(p, str) else p for p in pieces)]
    output = Output(SpelledDecoder(spelled), stop=stop, eog_ids={EOG})
    deltas = []
    for token in range(1, len(spelled)):
        deltas.append(output.push(token))
        if output.reason:
            break
    if ended:
        deltas.append(output.finish())
    return output, [delta for delta in deltas if delta is not None]


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def tokens_of(deltas: list[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.tokens]


def test_text_comes_with_its_token() -> None:
    _, deltas = run(["Hello", " world"])
    assert deltas == [Delta("Hello", (1,)), Delta(" world", (2,))]


def test_a_stop_string_over_many_tokens_is_removed() -> None:
    output, deltas = run(["a", "<", "e", "nd", ">"], "<end>", ended=False)
    assert deltas == [Delta("a", (1,))]
    assert (output.reason, output.stopping_word) == ("word", "<end>")
    assert output.finish() is None


def test_what_turns_out_to_be_no_stop_string_is_sent() -> None:
    output, deltas = run(["a<", "en", "try"], "<end>", ended=False)
    assert deltas == [Delta("a", (1,)), Delta("<entry", (2, 3))]
    assert output.reason is None


def test_the_rest_of_a_token_after_a_stop_string_is_dropped() -> None:
    output, deltas = run(["one. two\n\nthree"], "\n\n")
    assert deltas == [Delta("one. two", (1,))]
    assert output.stopping_word == "\n\n"


def test_a_stop_string_stays_if_it_is_wanted() -> None:
    spelled = [b"", b"a<", b"end", b"> b"]
    output = Output(SpelledDecoder(spelled), stop=["<end>"], includes_stop=True)
    deltas = [output.push(token) for token in (1, 2, 3)]
    assert text_of([delta for delta in deltas if delta is not None]) == "a<end>"
    assert (output.reason, output.stopping_word) == ("word", "<end>")


def test_a_token_of_the_rules_ends_the_text() -> None:
    spelled = [b"", b"a", b"."]
    for includes_stop, text in ((False, "a"), (True, "a.")):
        rules = TokenRules(stop_ids=frozenset({2}))
        output = Output(
            SpelledDecoder(spelled), eog_ids={EOG}, rules=rules, includes_stop=includes_stop
        )
        deltas = [delta for delta in (output.push(1), output.push(2)) if delta is not None]
        assert (text_of(deltas), tokens_of(deltas)) == (text, [1, 2])
        assert output.reason == "eos"


def test_no_stop_string_counts_before_so_many_tokens() -> None:
    spelled = [b"", b"stop", b"a", b"stop"]
    output = Output(SpelledDecoder(spelled), stop=["stop"], rules=TokenRules(min_tokens=2))
    deltas = [output.push(token) for token in (1, 2, 3)]
    assert deltas == [Delta("stop", (1,)), Delta("a", (2,)), None]
    assert output.reason == "word"


def test_a_stop_string_at_once_leaves_nothing() -> None:
    output, deltas = run(["st", "op"], "stop")
    assert (output.reason, deltas) == ("word", [])


def test_overlapping_beginnings() -> None:
    """In "aaab" the stop string "aab" begins one later than what was first held."""
    output, deltas = run(["a", "a", "a", "b"], "aab", ended=False)
    assert text_of(deltas) == "a"
    assert tokens_of(deltas) == [1]
    assert output.reason == "word"


@pytest.mark.parametrize("pieces", [["xabc"], ["x", "ab", "c"], ["xab", "c"]])
def test_the_stop_string_that_is_complete_first_counts(pieces: list[str | bytes]) -> None:
    output, deltas = run(pieces, "xabc", "ab")
    assert (text_of(deltas), output.stopping_word) == ("x", "ab")


def test_of_two_that_end_together_the_longer_counts() -> None:
    output, deltas = run(["1", "23", "4"], "34", "234")
    assert (text_of(deltas), output.stopping_word) == ("1", "234")


def test_held_text_is_flushed_by_the_end_of_generation() -> None:
    output = Output(SpelledDecoder([b"<|eog|>", b"a<"]), stop=["<end>"], eog_ids={EOG})
    assert output.push(1) == Delta("a", (1,))
    assert output.push(EOG) == Delta("<", (EOG,))
    assert (output.reason, output.stopping_word) == ("eos", "")
    assert output.finish() is None


def test_held_text_is_flushed_by_a_limit() -> None:
    output, deltas = run(["a", "<en"], "<end>")
    assert deltas == [Delta("a", (1,)), Delta("<en", (2,))]
    assert output.reason is None


def test_half_a_character_waits_for_its_rest() -> None:
    euro = "€".encode()
    _, deltas = run(["a", euro[:1], euro[1:2], euro[2:], "b"], ended=False)
    assert deltas == [Delta("a", (1,)), Delta("€", (2, 3, 4)), Delta("b", (5,))]


def test_half_a_character_at_the_end_is_replaced() -> None:
    _, deltas = run(["a", "€".encode()[:2]])
    assert deltas == [Delta("a", (1,)), Delta("\ufffd", (2,))]


def test_a_stop_string_of_split_characters_takes_their_tokens() -> None:
    stop = "…€"
    spelled = stop.encode()
    output, deltas = run(["a", *(spelled[i : i + 1] for i in range(6))], stop)
    assert deltas == [Delta("a", (1,))]
    assert output.stopping_word == stop


def test_a_token_without_text_comes_with_the_next() -> None:
    _, deltas = run(["a", "", "b", ""])
    assert deltas == [Delta("a", (1,)), Delta("b", (2, 3)), Delta("", (4,))]


def test_scores_leave_with_their_tokens() -> None:
    pieces = [b"", b"yes", b" <", b"end>"]
    scores = [TokenScore(token, piece, -1.0 * token) for token, piece in enumerate(pieces)]
    output = Output(SpelledDecoder(pieces), stop=["<end>"], eog_ids={EOG})
    assert output.push(1, scores[1]) == Delta("yes", (1,), (scores[1],))
    assert output.push(2, scores[2]) == Delta(" ", (2,), (scores[2],))
    assert output.push(3, scores[3]) is None
    assert output.reason == "word"


def test_scores_of_a_stop_strings_tokens_are_cut() -> None:
    pieces = [b"", b"yes", b"<", b"end", b">"]
    scores = [TokenScore(token, piece, -1.0) for token, piece in enumerate(pieces)]
    output = Output(SpelledDecoder(pieces), stop=["<end>"], eog_ids={EOG})
    deltas = [output.push(token, scores[token]) for token in (1, 2, 3, 4)]
    assert deltas == [Delta("yes", (1,), (scores[1],)), None, None, None]
    assert output.finish() is None


def test_the_end_of_generation_is_scored() -> None:
    score = TokenScore(EOG, b"", -0.5)
    output = Output(SpelledDecoder([b""]), eog_ids={EOG})
    assert output.push(EOG, score) == Delta("", (EOG,), (score,))


def test_empty_stop_strings_stop_nothing() -> None:
    output, deltas = run(["abc"], "", ended=False)
    assert (output.reason, deltas) == (None, [Delta("abc", (1,))])


@pytest.mark.parametrize("last", ["b", ""])
def test_a_token_after_the_end_is_a_fault(last: str) -> None:
    output, _ = run(["a", last], "b")
    with pytest.raises(ValueError, match="token 1 comes after the end"):
        output.push(1)


def first_stop(text: str, stop: list[str]) -> tuple[str, str]:
    """By definition: the text before the stop string that is complete first, and that one."""
    for end in range(1, len(text) + 1):
        there = [word for word in stop if text[:end].endswith(word)]
        if there:
            word = max(there, key=len)
            return text[: end - len(word)], word
    return text, ""


TEXTS = st.text(alphabet="ab€", max_size=24)
STOPS = st.lists(st.text(alphabet="ab€", min_size=1, max_size=5), max_size=3)


@settings(max_examples=500, deadline=None)
@given(text=TEXTS, stop=STOPS, cuts=st.lists(st.integers(0, 72), max_size=12))
def test_any_split_gives_the_text_before_the_stop_string(
    text: str, stop: list[str], cuts: list[int]
) -> None:
    raw = text.encode()
    at = sorted({min(cut, len(raw)) for cut in cuts} | {0, len(raw)})
    pieces: list[str | bytes] = [raw[a:b] for a, b in itertools.pairwise(at)]
    output, deltas = run(pieces, *stop)
    assert (text_of(deltas), output.stopping_word) == first_stop(text, stop)
    assert output.reason == ("word" if output.stopping_word else None)
    n_before = len(text_of(deltas).encode())
    expected = [i + 1 for i, start in enumerate(at[:-1]) if start < n_before]
    assert tokens_of(deltas) == expected


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, stop=STOPS)
def test_no_more_and_no_less_is_held_back_than_could_begin_a_stop_string(
    text: str, stop: list[str]
) -> None:
    output = Output(SpelledDecoder([b"", *(c.encode() for c in text)]), stop=stop, eog_ids={EOG})
    sent = ""
    for i in range(len(text)):
        delta = output.push(i + 1)
        sent += delta.text if delta else ""
        if output.reason:
            return
        so_far = text[: i + 1]
        undecided = [so_far[k:] for k in range(len(so_far)) if any_starts(stop, so_far[k:])]
        assert so_far == sent + max(undecided, key=len, default="")


def any_starts(stop: list[str], text: str) -> bool:
    return any(word.startswith(text) for word in stop)


def test_long_outputs_cost_no_more_a_token() -> None:
    """A search through the whole text for each token would take minutes."""
    pieces = [b"", b"lorem <"]
    output = Output(SpelledDecoder(pieces), stop=["<end>", "never"], eog_ids={EOG})
    began = time.process_time()
    for _ in range(100_000):
        output.push(1)
    assert time.process_time() - began < 10.0


@pytest.mark.parametrize(
    ("pieces", "text", "reason"),
    [
        (["  a", "\n", "  b\n", " ", "c"], "  a\n  b", "limit"),
        (["  a\n\n  b\n  ", " c"], "  a\n\n  b\n   c", None),
        (["x", "\ny"], "x", "limit"),
        (["x", "\n "], "x\n ", None),
    ],
)
def test_lines_indented_too_little_end_the_text(
    pieces: list[str], text: str, reason: str | None
) -> None:
    spelled = [b"", *(piece.encode() for piece in pieces)]
    output = Output(SpelledDecoder(spelled), min_indent=2)
    deltas = [output.push(token) for token in range(1, len(spelled)) if not output.reason]
    assert text_of([d for d in [*deltas, output.finish()] if d is not None]) == text
    assert output.reason == reason
