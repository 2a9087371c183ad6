"""Choosing the next token of one request, from what the device keeps of its logits.

The logits stay on the device. A Sampler first says what it needs of the row (``needs``),
then samples from that (``sample``) and takes note of the token (``accept``). It asks for as
little as its chain allows: where a top-k (or a greedy choice) limits the chain before any
step that looks at the whole vocabulary, for the k likeliest tokens plus one for each token
that a bias or a penalty could push down, and for the raw logits of those that one could
raise. So the result is the one that the whole row would give.

Semantics: llama.cpp, common/sampling.cpp and src/llama-sampler.cpp.
"""

from __future__ import annotations

import math
import secrets
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from operator import add
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gguf_serve.engine.errors import EngineError, RequestError
from gguf_serve.engine.option import LARGEST
from gguf_serve.engine.sampling import chain
from gguf_serve.engine.sampling.candidates import (
    Filter,
    Pool,
    Ranking,
    Tokens,
    cumulated,
    finite,
    ranked,
)
from gguf_serve.engine.sampling.dry_breakers import breaker_heads
from gguf_serve.engine.sampling.penalties import Dry, Repetition
from gguf_serve.engine.sampling.rules import bans, only
from gguf_serve.engine.sampling_params import NO_RULES, SamplingParams, TokenRules

# Above this many candidates, the whole row costs less than selecting from it.
_MAX_CANDIDATES = 1024
_LOWEST_FLOAT32 = -3.4028234663852886e38


class LogitNeeds(NamedTuple):
    """What a Sampler wants of a row: the k likeliest, the whole row, the logits of ids."""

    k: int
    full_row: bool
    ids: list[int]


class Candidates(NamedTuple):
    """What the device returned for one row, as asked for by LogitNeeds.

    ``ids`` and ``logits``: the k likeliest, by falling logit, ties by rising id; ``row``
    (n_vocab,) if the whole row was asked for; ``id_logits`` parallels ``LogitNeeds.ids``. All
    logits are raw.
    """

    ids: list[int] = []  # noqa: RUF012  # nobody changes it
    logits: list[float] = []  # noqa: RUF012
    row: NDArray[np.float32] | None = None
    id_logits: Sequence[float] = ()


class Sampled(NamedTuple):
    """A drawn token, its probability after all samplers, and the likeliest such tokens."""

    token: int
    prob: float
    top: tuple[tuple[int, float], ...] = ()  # (id, probability), none of probability 0


class Uniform:
    """Random numbers of [0, 1), and how many there were."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)
        self._random = np.random.Generator(self._bits).random
        self.n_drawn = 0

    def __call__(self) -> float:
        self.n_drawn += 1
        return self._random()

    def skip(self, n: int) -> None:
        """As if they had been drawn; each takes one step of the generator."""
        self._bits.advance(n)
        self.n_drawn += n


class Sampler:
    """The sampler of one request: its chain of steps, its random numbers, its history.

    ``encode`` and ``pieces`` (text to tokens, a token's bytes) serve DRY's sequence
    breakers; ``infill`` is the step of that name; ``rules`` hold whatever the chain is. ``seed``
    is the seed in use. Raises RequestError for a parameter out of range.
    """

    def __init__(
        self,
        params: SamplingParams,
        *,
        n_vocab: int,
        eog_ids: frozenset[int],
        n_ctx: int,
        prompt: Sequence[int],
        encode: Callable[[str], list[int]] | None = None,
        pieces: Callable[[int], bytes] | None = None,
        infill: Filter | None = None,
        rules: TokenRules = NO_RULES,
    ) -> None:
        params.check()
        self._n_vocab = n_vocab
        self.seed = params.seed if params.seed >= 0 else secrets.randbits(32)
        self._uniform = Uniform(self.seed)
        self._bias = _biases(params, n_vocab, eog_ids)
        self._biased = np.array(list(self._bias), np.intp)
        self._biases = np.array(list(self._bias.values()))
        self._lowered = {token for token, bias in self._bias.items() if bias < 0.0}
        self._raised = [token for token, bias in self._bias.items() if bias > 0.0]

        repetition = _repetition(params, n_ctx, prompt)
        dry = _dry(params, n_ctx, prompt, n_vocab, encode, pieces)
        banned = bans(rules, eog_ids)
        self._histories = [history for history in (banned, repetition, dry) if history is not None]
        stages = chain.build(
            params,
            repetition=repetition,
            dry=dry,
            infill=infill,
            uniform=self._uniform,
            n_vocab=n_vocab,
        )
        self._steps = [stage.step for stage in stages]
        self._learners = [stage.learner for stage in stages if stage.learner is not None]
        before: list[Filter] = [self._add_bias] if self._bias else []
        before += [banned] if banned is not None else []
        before += [only(rules.allowed)] if rules.allowed else []
        self._steps[:0] = before
        self._limit = None if rules.allowed else chain.limit(stages)
        self._needs = self._ask(self._raised, self._lowered)
        # Whether each token may change them, by one more of the likeliest mostly.
        self.needs_change = bool(self._histories) and self._limit is not None
        self._is_stale = self.needs_change
        self._takes_first = self._needs == (1, False, []) and not self._histories

    def needs(self) -> LogitNeeds:
        """What ``sample`` must be given next."""
        if self._is_stale:
            self._is_stale = False
            touched = [history.touched() for history in self._histories]
            raised = [history.touched() for history in self._histories if history.raises]
            self._needs = self._ask(set(self._raised).union(*raised), self._lowered.union(*touched))
        return self._needs

    def sample(self, candidates: Candidates, *, n_probs: int = 0) -> Sampled:
        """Draw a token; n_probs asks for so many of the likeliest after all samplers.

        ``candidates`` answers the last ``needs``. Raises EngineError where no token can be
        drawn since the logits are not numbers, RequestError where every token is banned.
        """
        if self._takes_first:
            return _first(candidates, n_probs)
        tokens = self._tokens(candidates)
        for step in self._steps:
            tokens = step(tokens)
        sampled = self._draw(tokens, n_probs)
        for learner in self._learners:
            learner.observe(sampled.token, sampled.prob)
        return sampled

    def accept(self, token: int) -> None:
        """Add a token to the history that the penalties look at."""
        for history in self._histories:
            history.accept(token)
        self._is_stale = self.needs_change

    @property
    def n_draws(self) -> int:
        return self._uniform.n_drawn

    @property
    def learned(self) -> tuple[float, ...]:
        """What ``resume`` takes, beside the number of draws."""
        return tuple(value for learner in self._learners for value in learner.learned)

    def resume(self, n_draws: int, learned: Sequence[float]) -> None:
        """Go on where another sampler of these parameters was, whose tokens are accepted."""
        if len(learned) != len(self.learned):
            raise RequestError(
                f"resume: {len(learned)} values were learned, these samplers learn "
                f"{len(self.learned)}"
            )
        self._uniform.skip(n_draws)
        at = 0
        for learner in self._learners:
            n = len(learner.learned)
            learner.resume(tuple(learned[at : at + n]))
            at += n

    def _add_bias(self, tokens: Tokens) -> Tokens:
        if isinstance(tokens, Pool) and tokens.whole:  # then there may be many biases
            tokens.logits[self._biased] += self._biases
            return tokens
        return tokens.changed(self._bias, add)

    def _ask(self, raised: Collection[int], lowered: Collection[int]) -> LogitNeeds:
        """A token that can only fall needs no logit: outside of the k it stays outside."""
        if self._limit is not None:
            k = min(self._limit + len(lowered), self._n_vocab)
            if k <= _MAX_CANDIDATES:
                return LogitNeeds(k, False, list(raised))
        return LogitNeeds(0, True, [])

    def _tokens(self, candidates: Candidates) -> Tokens:
        if candidates.row is not None:
            ids = np.arange(self._n_vocab, dtype=np.int32)
            return Pool(ids, candidates.row.astype(np.float64), whole=True)
        asked = self._needs.ids
        if not asked:
            return Ranking(candidates.ids, candidates.logits)
        others = dict(zip(asked, candidates.id_logits, strict=True))
        return ranked(others | dict(zip(candidates.ids, candidates.logits, strict=True)))

    def _draw(self, tokens: Tokens, n_probs: int) -> Sampled:
        weights = tokens.weights()
        masses = cumulated(weights)
        total = float(masses[-1])
        if not total > 0.0:
            raise EngineError(f"no token can be drawn: the probabilities sum to {total}")
        # Strictly below the total: a token of weight 0 is never drawn.
        mass = min(self._uniform() * total, math.nextafter(total, 0.0))
        i = bisect_right(masses, mass)
        top: tuple[tuple[int, float], ...] = ()
        if n_probs > 0:
            best = tokens.best(n_probs)
            pairs = zip(best.ids, best.weights(), strict=True)
            top = tuple((token, weight / total) for token, weight in pairs if weight > 0.0)
        return Sampled(int(tokens.ids[i]), float(weights[i]) / total, top)


def logprob(logit: float, lse: float) -> float:
    """A token's log-probability from its raw logit and the row's log-sum-exp.

    That of an impossible token is the lowest float32: JSON has no infinity.
    """
    return max(logit - lse, _LOWEST_FLOAT32)


def _first(candidates: Candidates, n_probs: int) -> Sampled:
    token = candidates.ids[0]
    finite(candidates.logits[0])
    return Sampled(token, 1.0, ((token, 1.0),) if n_probs > 0 else ())


def _biases(params: SamplingParams, n_vocab: int, eog_ids: frozenset[int]) -> dict[int, float]:
    biases: dict[int, float] = {}
    for token, bias in params.logit_bias:
        if not 0 <= token < n_vocab:
            raise RequestError(f"logit_bias: token {token} is not in 0..{n_vocab - 1}")
        if not bias < math.inf:
            raise RequestError(f"logit_bias: token {token} has the bias {bias}")
        biases[token] = biases.get(token, 0.0) + bias
    # Several of a token may add up to more than can be added.
    biases = {
        token: bias if bias == -math.inf else min(max(bias, -LARGEST), LARGEST)
        for token, bias in biases.items()
    }
    if params.ignore_eos:
        biases |= dict.fromkeys(sorted(eog_ids), -math.inf)
    return biases


def _repetition(params: SamplingParams, n_ctx: int, prompt: Sequence[int]) -> Repetition | None:
    if not chain.repeats_cost(params):
        return None
    window = n_ctx if params.repeat_last_n == -1 else params.repeat_last_n
    return Repetition(
        window, params.repeat_penalty, params.frequency_penalty, params.presence_penalty, prompt
    )


def _dry(
    params: SamplingParams,
    n_ctx: int,
    prompt: Sequence[int],
    n_vocab: int,
    encode: Callable[[str], list[int]] | None,
    pieces: Callable[[int], bytes] | None,
) -> Dry | None:
    if not chain.dry_costs(params):
        return None
    breakers = params.dry_sequence_breakers
    if breakers and (encode is None or pieces is None):
        raise RequestError("dry_sequence_breakers need a tokenizer, the model has none")
    heads = breaker_heads(breakers, n_vocab, encode, pieces) if encode and pieces else {}
    window = n_ctx if params.dry_penalty_last_n == -1 else params.dry_penalty_last_n
    window = min(window, n_ctx)
    return Dry(
        window, params.dry_multiplier, params.dry_base, params.dry_allowed_length, heads, prompt
    )
