"""llama.cpp's sampler for filling in: the end if it is likely at all, else what is likely in sum.

An editor shows what comes of it at the cursor, where little and right is better than much. Tokens
of which one begins with the other count as one, since the text goes on alike. The constants and
the order of the steps are llama.cpp's (src/llama-sampler.cpp: infill).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from functools import partial

import numpy as np

from gguf_serve.engine.request import Request
from gguf_serve.engine.sampling.candidates import Filter, Ranking, Tokens
from gguf_serve.engine.text.tokenizer import Tokenizer

LEAST_PROBABILITY = 0.2
END_FACTOR = 3.0  # the end is taken if its probability times this, and all tokens, is that of text
MOST_COMPARED = 1024  # with each other; those after them weigh next to nothing


def infill_step(request: Request, tokenizer: Tokenizer) -> Filter | None:
    """The step for a request that has it: a grammar says itself where a text may end."""
    if "infill" not in request.sampling.samplers:
        return None
    may_end = request.constraint is None and not request.sampling.ignore_eos
    end = tokenizer.eos_id if tokenizer.eot_id is None else tokenizer.eot_id
    text = partial(tokenizer.piece, special=False)
    return infill(tokenizer.eog_ids, end if may_end else None, text)


def infill(eog_ids: Collection[int], end: int | None, text: Callable[[int], bytes]) -> Filter:
    """The step. ``end`` is taken where no token is likely; None where the text must not end so.

    ``text`` has the bytes of a token, none of a special one.
    """
    eog = np.array(sorted(eog_ids), np.int32)

    def step(tokens: Tokens) -> Tokens:
        pool = tokens.pool()
        weights = pool.weights()
        ends = np.isin(pool.ids, eog)
        total, of_ends = float(weights.sum()), float(weights[ends].sum())
        if END_FACTOR * of_ends * pool.ids.size > total - of_ends:
            return pool.take(ends)
        best = tokens.best(MOST_COMPARED)
        probs = merged([w / total for w in best.weights()], [text(token) for token in best.ids])
        return likely(best, probs, [token in eog_ids for token in best.ids], end)

    return step


def merged(probs: Sequence[float], texts: Sequence[bytes]) -> list[float]:
    """The probabilities, by falling ones, after each of two tokens that begin alike, the shorter
    with all of its text, has gone into the likelier one."""
    sums, gone = list(probs), [not text for text in texts]
    for short, longer in enumerate(_beginnings(texts)):
        for long in longer:
            if gone[short]:
                break
            if gone[long]:
                continue
            into, out = (long, short) if sums[long] > sums[short] else (short, long)
            sums[into] += sums[out]
            sums[out] = 0.0
            gone[out] = True
    return sums


def _beginnings(texts: Sequence[bytes]) -> list[list[int]]:
    """Of each text, which others begin with it."""
    places: defaultdict[bytes, list[int]] = defaultdict(list)
    for i, text in enumerate(texts):
        places[text].append(i)
    longer: list[list[int]] = [[] for _ in texts]
    for i, text in enumerate(texts):
        for n in range(1, len(text) + 1):
            for short in places.get(text[:n], ()):
                if short != i:
                    longer[short].append(i)
    return longer


def likely(best: Ranking, probs: Sequence[float], ends: Sequence[bool], end: int | None) -> Ranking:
    """The ends, and of the others those that are likely, and likelier than if all were as likely.

    They are drawn by their own probabilities, not by those that ``probs`` has.
    """
    kept = [i for i, p in enumerate(probs) if p > 0.0 and (ends[i] or p >= LEAST_PROBABILITY)]
    n_texts = sum(not ends[i] for i in kept)
    if n_texts == 0 and end is not None:
        return Ranking([end], [0.0])
    if not kept:
        return best.best(1)
    least = sum(probs[i] for i in kept) / (n_texts + 1)
    kept = [i for i in kept if ends[i] or probs[i] >= least]
    return Ranking([best.ids[i] for i in kept], [best.logits[i] for i in kept])
