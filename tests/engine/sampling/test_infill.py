"""The sampler for filling in, against the same steps written out, one by one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gguf_serve.engine.sampling.candidates import Pool, Ranking, ranked
from gguf_serve.engine.sampling.infill import infill
from gguf_serve.engine.sampling.sampler import Candidates, LogitNeeds, Sampler
from gguf_serve.engine.sampling_params import SamplingParams

ROUNDING = 1e-9  # sums in another order may lie on the other side of a limit that is nearer
END, EOT = 100, 101
Tokens = dict[int, tuple[bytes, float]]  # by id: text and probability


def chosen(tokens: Tokens, end: int | None = EOT, *, whole: bool = False) -> list[int]:
    logits = {id: math.log(p) if p > 0.0 else -math.inf for id, (_, p) in tokens.items()}
    step = infill({END, EOT}, end, lambda id: tokens[id][0])
    given = ranked(logits)
    if whole:
        return sorted(step(given.pool()).ranking().ids)
    left = step(given).ranking()
    assert all(left.logits[i] == logits.get(id, 0.0) for i, id in enumerate(left.ids))
    return sorted(left.ids)


def expected(tokens: Tokens) -> list[int]:
    """By comparing every token with every other, as llama.cpp does."""
    ids = sorted(tokens, key=lambda id: (-tokens[id][1], id))
    p = {id: tokens[id][1] for id in ids}
    eog = [id for id in ids if id in (END, EOT)]
    of_ends = sum(p[id] for id in eog)
    if 3 * of_ends * len(ids) > sum(p.values()) - of_ends:
        return sorted(eog)
    gone: set[int] = set()
    for a in ids:
        for b in ids:
            if a in gone:
                break
            if a == b or b in gone:
                continue
            if tokens[a][0] and tokens[b][0].startswith(tokens[a][0]):
                into, out = (b, a) if p[b] > p[a] else (a, b)
                p[into], p[out] = p[into] + p[out], 0.0
                gone.add(out)
    assume(all(abs(p[id] - 0.2) > ROUNDING for id in ids))
    kept = [id for id in ids if p[id] > 0 and (id in eog or p[id] >= 0.2)]
    n_texts = sum(id not in eog for id in kept)
    if n_texts == 0:
        return [EOT]
    share = sum(p[id] for id in kept) / (n_texts + 1)
    assume(all(abs(p[id] - share) > ROUNDING for id in kept if id not in eog))
    return sorted(id for id in kept if id in eog or p[id] >= share)


@st.composite
def vocabularies(draw: Any) -> Tokens:
    texts = draw(st.lists(st.text("ab", min_size=0, max_size=4), min_size=1, max_size=12))
    n_ends = draw(st.integers(0, 2))
    parts = st.floats(0.01, 1.0)
    weights = [draw(parts) ** 3 for _ in texts]
    weights += [draw(st.sampled_from([1e-6, 1e-3, 0.3])) for _ in range(n_ends)]
    total = sum(weights)
    ids = [*range(len(texts)), *(END, EOT)[:n_ends]]
    found = [*(text.encode() for text in texts), *[b""] * n_ends]
    return {id: (t, w / total) for id, t, w in zip(ids, found, weights, strict=True)}


@given(vocabularies())
def test_as_written_out(tokens: Tokens) -> None:
    assert chosen(tokens) == chosen(tokens, whole=True) == expected(tokens)


@pytest.mark.parametrize(
    ("tokens", "left"),
    [
        ({0: (b"a", 0.9), END: (b"", 0.1)}, [0, END]),
        ({0: (b"a", 0.8), END: (b"", 0.2)}, [END]),  # 3 * 0.2 * 2 > 0.8
        ({0: (b" re", 0.5), 1: (b" return", 0.3), 2: (b"x", 0.2)}, [0]),
        ({0: (b" return", 0.45), 1: (b"x", 0.35), 2: (b" re", 0.2)}, [0, 1]),
        ({i: (bytes([97 + i]), 0.1) for i in range(10)}, [EOT]),  # nothing is likely
        ({0: (b"<", 0.5), 1: (b"", 0.5)}, [0, 1]),  # special tokens begin with nothing
    ],
)
def test_what_is_left(tokens: Tokens, left: list[int]) -> None:
    assert chosen(tokens) == left


def test_where_the_text_must_go_on() -> None:
    """The likeliest, if none is likely; an end that is possible is taken all the same."""
    unlikely: Tokens = {i: (bytes([97 + i]), 0.1) for i in range(9)} | {9: (b"z", 0.0999)}
    assert chosen(unlikely, end=None) == [0]
    assert chosen(unlikely | {END: (b"", 0.0001)}, end=None) == [END]
    assert chosen(unlikely | {END: (b"", 0.0)}, end=None) == [0]


def test_the_whole_vocabulary() -> None:
    """Every logit counts, and only some are compared."""
    logits = np.zeros(150_000)
    logits[7] = 20.0
    step = infill({END}, END, lambda id: b"%d" % id)
    left = step(Pool(np.arange(logits.size, dtype=np.int32), logits, whole=True)).ranking()
    assert left.ids == [7]


def test_in_a_chain() -> None:
    """Behind a top-k it needs no more than that leaves."""
    params = SamplingParams(top_k=3, seed=1, samplers=("top_k", "infill"))
    step = infill({3}, 3, lambda id: b"abcd"[id : id + 1])
    sampler = Sampler(params, n_vocab=4, eog_ids=frozenset({3}), n_ctx=64, prompt=(), infill=step)
    assert sampler.needs() == LogitNeeds(3, False, [])
    sampled = sampler.sample(Candidates([1, 0, 2], [0.0, -0.1, -3.0]), n_probs=4)
    assert [token for token, _ in sampled.top] == [1, 0]
    assert sampler.sample(Candidates([3, 0, 2], [0.0, 0.0, -3.0])).token == 3


def test_a_ranking_stays_one() -> None:
    step = infill(set(), None, lambda id: b"x")
    assert type(step(Ranking([1, 2], [0.0, 0.0]))) is Ranking
