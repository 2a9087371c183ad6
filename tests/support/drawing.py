"""Samplers, and what a device would give them of a row of logits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gguf_serve.engine.sampling.sampler import Candidates, LogitNeeds, Sampler
from gguf_serve.engine.sampling_params import NO_RULES, SamplingParams, TokenRules


def answer(needs: LogitNeeds, row: NDArray[np.float32]) -> Candidates:
    """What the device returns."""
    if needs.full_row:
        return Candidates(row=row)
    ids = np.lexsort((np.arange(row.size), -row))[: needs.k].astype(np.int32)
    return Candidates(ids.tolist(), row[ids].tolist(), None, row[needs.ids].tolist())


def make(
    params: SamplingParams,
    n_vocab: int = 32,
    prompt: tuple[int, ...] = (),
    n_ctx: int = 4096,
    eog_ids: frozenset[int] = frozenset(),
    rules: TokenRules = NO_RULES,
) -> Sampler:
    return Sampler(
        params, n_vocab=n_vocab, eog_ids=eog_ids, n_ctx=n_ctx, prompt=prompt, rules=rules
    )
