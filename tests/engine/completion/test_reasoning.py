"""The limit on thinking: what is counted, and when the end is forced."""

from __future__ import annotations

from gguf_serve.engine.completion.reasoning import BudgetWatch, ends_whole
from gguf_serve.engine.request import ReasoningBudget

END = 90


def piece(token: int) -> bytes:
    return b"</think>" if token == END else bytes([token])


def forced(text: bytes, n_tokens: int, *, is_open: bool = False) -> tuple[int, list[int]]:
    """How many bytes of the text the model writes before the end is forced, and with what."""
    budget = ReasoningBudget("<think>", ("</think>",), (*b"..", END), n_tokens, is_open)
    watch = BudgetWatch(budget, piece)
    for place, token in enumerate(text):
        if watch.next is not None:
            return place, [*iter_forced(watch)]
        watch.accept(token)
    return len(text), [*iter_forced(watch)]


def iter_forced(watch: BudgetWatch) -> list[int]:
    found = []
    while watch.next is not None:
        found.append(watch.next)
        watch.accept(watch.next)
    return found


def test_the_end_is_forced_after_so_many_tokens() -> None:
    assert forced(b"<think>abcdefg", 3) == (10, [*b"..", END])
    assert forced(b"abc", 2, is_open=True) == (2, [*b"..", END])
    assert forced(b"<think>abc", 0) == (7, [*b"..", END])
    assert forced(b"abc", 0, is_open=True)[0] == 0


def test_nothing_is_forced_outside_of_reasoning() -> None:
    assert forced(b"abcdef" * 9, 2) == (54, [])
    assert forced(b"<think>ab</think>cdefghijklmnop", 20) == (31, [])
    assert forced(b"<think>abcdefghijkl", -1) == (19, [])


def test_characters_stay_whole() -> None:
    assert forced(b"<think>" + "aé".encode(), 2)[0] == 10
    assert ends_whole("é€😀a".encode())
    for cut in ("é", "€", "😀"):
        whole = cut.encode()
        assert ends_whole(b"a" + whole)
        assert not any(ends_whole(b"a" + whole[:n]) for n in range(1, len(whole)))


def test_reasoning_can_be_ended_at_any_time() -> None:
    budget = ReasoningBudget("<think>", ("</think>",), (END,))
    watch = BudgetWatch(budget, piece)
    assert not watch.end()
    for token in b"<think>ab":
        watch.accept(token)
    assert watch.next is None
    assert watch.end()
    assert iter_forced(watch) == [END]
