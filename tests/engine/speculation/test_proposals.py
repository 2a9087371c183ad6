"""Whose guess a request takes, and how it learns how good guesses are."""

from __future__ import annotations

from collections.abc import Sequence

from gguf_serve.engine.request import DraftLimits, Drafts
from gguf_serve.engine.speculation.proposals import Proposals


class Fixed:
    """Guesses the same tokens each time that it is asked."""

    def __init__(self, kind: str, tokens: Sequence[int]) -> None:
        self.kind, self.trust, self.tokens = kind, 0.5, tokens
        self.judged: list[tuple[int, int]] = []

    def propose(self, tokens: Sequence[int], most: int) -> Sequence[int]:
        return self.tokens[:most]

    def judge(self, n_right: int, n_guessed: int) -> None:
        self.judged.append((n_right, n_guessed))


def test_the_first_drafter_with_a_guess_is_taken():
    first, second = Fixed("a", []), Fixed("b", [1, 2, 3, 4])
    proposals = Proposals([9], [first, second], {0})
    assert proposals.propose(8).tokens == (1, 2, 3, 4)
    proposals.note(1)
    assert proposals.propose(8).tokens == (2, 3, 4)
    first.tokens = [7]
    assert proposals.propose(8).tokens == (7,)
    assert second.judged == [(1, 4)]


def test_what_is_not_verified_is_judged_as_well():
    drafter = Fixed("a", [1, 2, 3])
    proposals = Proposals([9], [drafter], {0})
    before = proposals.propose(8).chance
    for token in (1, 2, 3):
        proposals.note(token)
    assert proposals.propose(8).chance > before
    proposals.note(5)
    assert drafter.judged == [(3, 3), (0, 3)]
    for _ in range(20):
        proposals.propose(8)
        proposals.note(5)
    assert proposals.propose(8).chance < 0.2
    assert proposals.counts.drafts == Drafts()


def test_a_guess_stops_before_the_end_of_the_text_and_at_the_limit():
    proposals = Proposals([9], [Fixed("a", [1, 2, 0, 3])], {0})
    assert proposals.propose(8).tokens == (1, 2)
    assert Proposals([9], [Fixed("a", [1, 2, 3])], {0}, limits=DraftLimits(most=1)).propose(
        8
    ).tokens == (1,)
    assert Proposals([9], [Fixed("a", [0])], {0}).propose(8).tokens == ()


def test_counts_are_by_kind():
    proposals = Proposals([9], [Fixed("a", [1, 2, 3])], {0})
    proposals.verify(proposals.propose(8).tokens)
    proposals.note(1)
    proposals.accept()
    assert (proposals.counts.drafted, proposals.counts.accepted) == ({"a": 3}, {"a": 1})
